/* layermerge.h as a program sees it. */
#include "layermerge.h"
#include "core/io.h"
#include "data/data.h"
#include "nn/nn.h"
#include "tests/test.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

/* A network of that size, saved as `name`. */
static void save(const char *name, const char *arch, nn_build b)
{
    err e = { 0 };
    nn_graph *g = nn_model_find(arch)->build(&b, &e);
    CHECK_OK(g, e);
    nn_state_init(g, 5);
    CHECK_OK(nn_model_save(g, in_dir(name), &(nn_meta){ "labels", "cat\ndog\nhorse" }, 1, &e), e);
    nn_graph_free(g);
}

static bool says(const char *words)
{
    const bool found = strstr(lm_error(), words) != NULL;
    if (!found)
        fprintf(stderr, "said: %s\n", lm_error());
    return found;
}

enum { SIDE = 12, IMAGE = 3 * SIDE * SIDE, CLASSES = 3, IMAGES = 7 };
static float images[IMAGES * IMAGE];

static void fill_images(void)
{
    rng r = rng_at(1, RNG_TEST, 0, 0);
    for (int i = 0; i < IMAGES * IMAGE; i++)
        images[i] = (float)rng_normal(&r);
}

static void a_model_is_loaded_planned_run_and_freed(void)
{
    lm_model *m = lm_load(in_dir("m"));
    CHECK(m);
    lm_shape in = lm_input(m), out = lm_output(m);
    CHECK(in.c == 3 && in.h == SIDE && in.w == SIDE && out.c == CLASSES && out.h == 1 && out.w == 1);
    CHECK_TEXT(lm_label(m, 2), "horse");
    CHECK(!lm_label(m, 3) && !lm_label(m, -1));
    CHECK(lm_plan(m, 2, 1) == 0);
    float y[CLASSES] = { 0 };
    CHECK(lm_run(m, 1, images, y) == 0 && y[0] != 0 && y[0] != y[1]);
    lm_free(m);
    lm_free(NULL);
}

static void any_number_of_images_on_any_threads_gives_the_same_bits(void)
{
    lm_model *m = lm_load(in_dir("m"));
    float one[IMAGES * CLASSES], y[IMAGES * CLASSES];
    CHECK(lm_plan(m, 1, 1) == 0 && lm_run(m, IMAGES, images, one) == 0);
    static const struct { int batch, threads; } way[] = { { 3, 1 }, { 7, 2 }, { 16, 3 } };
    for (size_t i = 0; i < sizeof way / sizeof *way; i++) {
        memset(y, 0, sizeof y);
        CHECK(lm_plan(m, way[i].batch, way[i].threads) == 0 && lm_run(m, IMAGES, images, y) == 0);
        for (int k = 0; k < IMAGES * CLASSES; k++)
            CHECK_CLOSE(y[k], one[k], 1e-5);
        float again[IMAGES * CLASSES];
        CHECK(lm_plan(m, way[i].batch, 1) == 0 && lm_run(m, IMAGES, images, again) == 0);
        CHECK(!memcmp(again, y, sizeof y));
    }
    CHECK(lm_run(m, 0, images, y) == 0);
    lm_free(m);
}

static void models_share_the_pool(void)
{
    lm_model *a = lm_load(in_dir("m")), *b = lm_load(in_dir("m"));
    float ya[CLASSES], yb[CLASSES];
    CHECK(lm_plan(a, 1, 2) == 0 && lm_plan(b, 1, 0) == 0);
    CHECK(lm_plan(b, 1, 3) == ERR_CONFIG && says("3 threads wanted, the other models of this process share 2"));
    CHECK(lm_run(b, 1, images, yb) == ERR_CONFIG && says("lm_run before lm_plan"));
    CHECK(lm_plan(b, 1, 2) == 0);
    lm_run(a, 1, images, ya);
    lm_free(a);
    CHECK(lm_run(b, 1, images, yb) == 0 && !memcmp(ya, yb, sizeof ya));
    lm_free(b);
    lm_model *c = lm_load(in_dir("m"));
    CHECK(lm_plan(c, 1, 3) == 0);            /* nobody else is left */
    lm_free(c);
}

typedef struct { lm_model *m; float y[IMAGES * CLASSES]; int code; } job;

static void *run_many(void *p)
{
    job *j = p;
    for (int i = 0; i < 20 && !j->code; i++)
        j->code = lm_run(j->m, IMAGES, images, j->y);
    return NULL;
}

static void threads_of_the_caller_run_models_side_by_side(void)
{
    job j[3] = { { 0 } };
    pthread_t t[3];
    for (int i = 0; i < 3; i++) {
        j[i].m = lm_load(in_dir("m"));
        CHECK(lm_plan(j[i].m, 4, 2) == 0);
    }
    for (int i = 0; i < 3; i++)
        CHECK(!pthread_create(&t[i], NULL, run_many, &j[i]));
    for (int i = 0; i < 3; i++)
        pthread_join(t[i], NULL);
    for (int i = 0; i < 3; i++) {
        CHECK(j[i].code == 0 && !memcmp(j[i].y, j[0].y, sizeof j->y));
        lm_free(j[i].m);
    }
}

static void a_planned_model_leaves_signals_and_cores_alone(void)
{
    struct sigaction before = { .sa_handler = SIG_DFL }, after;
    sigaction(SIGPIPE, &before, NULL);
    lm_model *m = lm_load(in_dir("m"));
    const int cpus = core_cpus();
    CHECK(lm_plan(m, 1, 0) == 0);
    sigaction(SIGPIPE, NULL, &after);
    CHECK(after.sa_handler == SIG_DFL && core_cpus() == cpus);
    lm_free(m);
}

static void images_are_prepared_as_the_file_says(void)
{
    err e = { 0 };
    uint8_t pixel[16 * 20 * 3];
    for (int i = 0; i < (int)sizeof pixel; i++)
        pixel[i] = (uint8_t)(i * 7);
    CHECK_OK(image_write_png(in_dir("i.png"), &(data_image){ 16, 20, 3, pixel }, &e), e);
    lm_model *m = lm_load(in_dir("m"));
    nn_graph *g = nn_model_load(in_dir("m"), &e);
    float x[IMAGE], again[IMAGE], want[IMAGE], planes[IMAGE];
    data_prep prep;
    CHECK_OK(g && data_prep_parse(&prep, g->prep, &e), e);
    CHECK_OK(data_load_file(in_dir("i.png"), &prep, want, &e), e);
    nhwc_to_nchw(want, 1, SIDE, SIDE, 3, planes);
    CHECK(lm_image(m, in_dir("i.png"), x) == 0 && !memcmp(x, planes, sizeof x));
    buf b = { 0 };
    CHECK_OK(file_read(in_dir("i.png"), &b, &e), e);
    CHECK(lm_image_bytes(m, b.data, b.len, again) == 0 && !memcmp(x, again, sizeof x));
    CHECK(lm_image_bytes(m, b.data, b.len / 2, again) == ERR_DATA && says("the image"));
    CHECK(lm_image(m, in_dir("none.png"), x) == ERR_NOINPUT && says("none.png"));
    buf_free(&b);
    nn_graph_free(g);
    lm_free(m);
}

static void what_cannot_be_is_a_code_and_a_sentence(void)
{
    CHECK(!lm_load(in_dir("none")) && says("none"));
    CHECK(!lm_load("/dev/null") && says("neither safetensors"));
    lm_model *m = lm_load(in_dir("m"));
    CHECK(lm_plan(m, 0, 1) == ERR_CONFIG && says("a batch of 0"));
    CHECK(lm_plan(m, 1, -1) == ERR_CONFIG && lm_plan(m, 1, 100000) == ERR_CONFIG && says("100000 threads"));
    CHECK(lm_plan(m, 1, 1) == 0 && lm_run(m, -1, images, images) == ERR_CONFIG);
    lm_free(m);
    CHECK_TEXT(lm_version(), CORE_VERSION);
}

int main(void)
{
    make_dir();
    fill_images();
    save("m", "resnet20", (nn_build){ .classes = CLASSES, .h = SIDE, .w = SIDE, .c = 3 });
    RUN(a_model_is_loaded_planned_run_and_freed);
    RUN(any_number_of_images_on_any_threads_gives_the_same_bits);
    RUN(models_share_the_pool);
    RUN(threads_of_the_caller_run_models_side_by_side);
    RUN(a_planned_model_leaves_signals_and_cores_alone);
    RUN(images_are_prepared_as_the_file_says);
    RUN(what_cannot_be_is_a_code_and_a_sentence);
    remove_dir();
    END();
}
