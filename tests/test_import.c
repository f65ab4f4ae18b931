/* Published weights: names, refusals, and PyTorch's logits on fixed inputs. */
#include "core/io.h"
#include "nn/nn.h"
#include "tests/test.h"

#include <stdlib.h>
#include <unistd.h>

#define DATA "../shared/data/"

static const char *file;

static nn_graph *make(const char *name, nn_build b)
{
    err e = { 0 };
    nn_graph *g = nn_model_find(name)->build(&b, &e);
    CHECK_OK(g, e);
    return g;
}

/* ---- files made for a test --------------------------------------------------------------------------- */

typedef struct { char name[128]; int rank; int64_t dim[4]; } entry;
typedef struct { entry *t; int n; float *x; } listing;   /* every tensor holds x: 0, 1, 2, … */

/* The parameters of g, in file order, to be edited before writing. */
static listing list(const nn_graph *g)
{
    listing l = { mem_new((size_t)g->n_param + 1, sizeof(entry), NULL), g->n_param, NULL };
    int64_t most = 1;
    for (int i = 0; i < g->n_param; i++) {
        const nn_param *p = &g->param[i];
        snprintf(l.t[i].name, sizeof l.t[i].name, "%s", p->name);
        l.t[i].rank = p->rank;
        memcpy(l.t[i].dim, p->dim, sizeof p->dim);
        most = nn_param_count(p) > most ? nn_param_count(p) : most;
    }
    l.x = mem_new((size_t)most, sizeof(float), NULL);
    for (int64_t i = 0; i < most; i++)
        l.x[i] = (float)(i % 1000);
    return l;
}

static void save(const listing *l)
{
    err e = { 0 };
    tf_tensor *t = mem_new((size_t)l->n, sizeof *t, NULL);
    for (int i = 0; i < l->n; i++) {
        t[i] = (tf_tensor){ .name = l->t[i].name, .dtype = DT_F32, .rank = l->t[i].rank, .data = (const char *)l->x };
        memcpy(t[i].dim, l->t[i].dim, sizeof l->t[i].dim);
        int64_t stride = 1;
        for (int k = t[i].rank - 1; k >= 0; stride *= t[i].dim[k--])
            t[i].stride[k] = stride;
    }
    CHECK_OK(safetensors_write(file, t, l->n, NULL, 0, &e), e);
    mem_free(t);
}

static void list_free(listing *l)
{
    mem_free(l->t);
    mem_free(l->x);
}

static void remove_entry(listing *l, const char *name)
{
    for (int i = 0; i < l->n; i++)
        if (!strcmp(l->t[i].name, name)) {
            memmove(&l->t[i], &l->t[i + 1], (size_t)(l->n-- - i - 1) * sizeof *l->t);
            return;
        }
    CHECK(!"in the list");
}

/* `from` at the start of a name becomes `to`. */
static void rename_entries(listing *l, const char *from, const char *to)
{
    for (int i = 0; i < l->n; i++)
        if (!strncmp(l->t[i].name, from, strlen(from))) {
            char name[256];
            snprintf(name, sizeof name, "%s%s", to, l->t[i].name + strlen(from));
            snprintf(l->t[i].name, sizeof l->t[i].name, "%.*s", (int)sizeof l->t[i].name - 1, name);
        }
}

/* ---- refusals ------------------------------------------------------------------------------------------- */

static void what_does_not_fit_is_named_and_counted(void)
{
    err e = { 0 };
    nn_graph *g = make("resnet20", (nn_build){ 0 });
    listing l = list(g);
    save(&l);
    CHECK_OK(nn_import(g, file, &e), e);
    CHECK(g->param[3].x[2] == 2.0f);
    remove_entry(&l, "layer1.0.conv1.weight");
    rename_entries(&l, "linear.", "fc.");
    l.t[0].dim[3] = 5;                                   /* conv1.weight */
    save(&l);
    CHECK(!nn_import(g, file, &e) && e.code == ERR_DATA);
    static const char *const say[] = { "3 missing (layer1.0.conv1.weight, linear.weight, linear.bias)",
        "2 extra (fc.weight, fc.bias)", "1 of another shape (conv1.weight is 16x3x3x5, wants 16x3x3x3)", "resnet20" };
    for (int i = 0; i < 4; i++) {
        if (!strstr(e.msg, say[i]))
            fprintf(stderr, "\"%s\" does not say \"%s\"\n", e.msg, say[i]);
        CHECK(strstr(e.msg, say[i]));
    }
    list_free(&l);
    nn_graph_free(g);
}

static void many_faults_are_counted_and_all_named(void)
{
    err e = { 0 };
    nn_graph *g = make("resnet20", (nn_build){ 0 });
    listing l = list(g);
    rename_entries(&l, "layer", "stage");
    save(&l);
    CHECK(!nn_import(g, file, &e) && strstr(e.msg, "90 missing (layer1.0.conv1.weight,") && strstr(e.msg, "90 extra ("));
    for (int i = 0; i < l.n; i++)
        CHECK(strncmp(l.t[i].name, "stage", 5) || strstr(e.msg, l.t[i].name));
    list_free(&l);
    nn_graph_free(g);
}

static void values_that_are_not_finite_are_refused(void)
{
    err e = { 0 };
    nn_graph *g = make("resnet20", (nn_build){ 0 });
    listing l = list(g);
    l.x[100] = NAN;
    save(&l);
    CHECK(!nn_import(g, file, &e) && e.code == ERR_DATA && strstr(e.msg, "conv1.weight holds a value"));
    list_free(&l);
    nn_graph_free(g);
}

static void a_missing_file_is_missing_input(void)
{
    err e = { 0 };
    nn_graph *g = make("resnet20", (nn_build){ 0 });
    CHECK(!nn_import(g, "/nonexistent/w.pth", &e) && e.code == ERR_NOINPUT);
    nn_graph_free(g);
}

/* ---- other people's names ----------------------------------------------------------------------------------- */

static void prefixes_of_data_parallel_and_step_counters_do_not_matter(void)
{
    err e = { 0 };
    nn_graph *g = make("resnet20", (nn_build){ 0 });
    listing l = list(g);
    l.t[l.n++] = (entry){ .name = "bn1.num_batches_tracked", .rank = 0 };
    for (int i = 0; i < l.n; i++) {
        char name[128];
        snprintf(name, sizeof name, "%s", l.t[i].name);
        snprintf(l.t[i].name, sizeof l.t[i].name, "module.%.100s", name);
    }
    save(&l);
    CHECK_OK(nn_import(g, file, &e), e);
    list_free(&l);
    nn_graph_free(g);
}

/* Our names to timm's, written down independently of the table under test. */
static void timms_mobilenetv2_is_read(void)
{
    err e = { 0 };
    nn_graph *g = make("mobilenetv2", (nn_build){ .h = 32, .w = 32, .classes = 10 });
    listing l = list(g);
    static const int repeats[7] = { 1, 2, 3, 4, 3, 3, 1 };
    int number = 1;
    for (int s = 0; s < 7; s++)
        for (int i = 0; i < repeats[s]; i++, number++) {
            static const char *const ours[2][6] = {
                { "0.0.", "0.1.", "1.", "2.", NULL }, { "0.0.", "0.1.", "1.0.", "1.1.", "2.", "3." } };
            static const char *const timm[2][6] = {
                { "conv_dw.", "bn1.", "conv_pw.", "bn2.", NULL },
                { "conv_pw.", "bn1.", "conv_dw.", "bn2.", "conv_pwl.", "bn3." } };
            for (int k = 0; k < 6 && ours[s > 0][k]; k++) {
                char from[64], to[64];
                snprintf(from, sizeof from, "features.%d.conv.%s", number, ours[s > 0][k]);
                snprintf(to, sizeof to, "blocks.%d.%d.%s", s, i, timm[s > 0][k]);
                rename_entries(&l, from, to);
            }
        }
    rename_entries(&l, "features.0.0.", "conv_stem.");
    rename_entries(&l, "features.0.1.", "bn1.");
    rename_entries(&l, "features.18.0.", "conv_head.");
    rename_entries(&l, "features.18.1.", "bn2.");
    rename_entries(&l, "classifier.1.", "classifier.");
    save(&l);
    CHECK_OK(nn_import(g, file, &e), e);
    list_free(&l);
    nn_graph_free(g);
}

/* timm keeps VGG's first linear layers as 7x7 and 1x1 convolutions. A graph with such a head in small. */
static void a_linear_layer_stored_as_a_convolution_is_read(void)
{
    err e = { 0 };
    nn_graph *g = nn_graph_new("head", &e);
    int x = nn_add_input(g, "input", 7, 7, 3, &e);
    x = nn_add_linear(g, "classifier.0", x, 6, true, &e);
    x = nn_add_linear(g, "classifier.3", x, 5, true, &e);
    g->output = nn_add_linear(g, "classifier.6", x, 4, true, &e);
    CHECK_OK(g->output >= 0, e);
    listing l = list(g);
    l.t[0].rank = l.t[2].rank = 4;
    memcpy(l.t[0].dim, (int64_t[4]){ 6, 3, 7, 7 }, sizeof l.t[0].dim);
    memcpy(l.t[2].dim, (int64_t[4]){ 5, 6, 1, 1 }, sizeof l.t[2].dim);
    rename_entries(&l, "classifier.0", "pre_logits.fc1");
    rename_entries(&l, "classifier.3", "pre_logits.fc2");
    rename_entries(&l, "classifier.6", "head.fc");
    save(&l);
    CHECK_OK(nn_import(g, file, &e), e);
    CHECK(g->param[0].x[100] == 100.0f);
    list_free(&l);
    nn_graph_free(g);
}

/* ---- PyTorch's logits ----------------------------------------------------------------------------------------- */

enum { IMAGES = 8 };

/* x[n][c][h][w] = sin(0.01 (n+1) (c*H*W + h*W + w)) */
static void sine_input(const nn_node *in, float *x)
{
    int64_t h = in->dim[1], w = in->dim[2], c = in->dim[3];
    for (int64_t n = 0; n < IMAGES; n++)
        for (int64_t i = 0; i < h * w; i++)
            for (int64_t k = 0; k < c; k++)
                *x++ = (float)sin(0.01 * (double)(n + 1) * (double)(k * h * w + i));
}

/* Largest difference between the plan's outputs and the fixture's lines. */
static double compare(const char *path, const float *y, int64_t classes)
{
    err e = { 0 };
    buf text = { 0 };
    CHECK_OK(file_read(path, &text, &e), e);
    double worst = 0;
    char *at = text.data;
    for (int64_t i = 0; i < IMAGES * classes; i++) {
        double want = strtod(at, &at);
        worst = fmax(worst, fabs(want - (double)y[i]));
        CHECK(*at == ((i + 1) % classes ? ',' : '\n') || *at == '\r');
        at += *at != 0;
    }
    buf_free(&text);
    return worst;
}

static void check_logits(const char *arch, const char *weights, const char *logits, double tolerance)
{
    err e = { 0 };
    nn_graph *g = make(arch, (nn_build){ 0 });
    CHECK_OK(nn_import(g, weights, &e), e);
    nn_plan *p = nn_plan_new(g, NN_INFER, IMAGES, &e);
    CHECK_OK(p, e);
    if (p) {
        sine_input(&g->node[0], nn_plan_input(p, 0));
        nn_plan_forward(p);
        double worst = compare(logits, nn_plan_output(p), g->node[g->output].dim[3]);
        printf("%s: logits differ from PyTorch's by %.2g at most\n", arch, worst);
        CHECK_CLOSE(worst, 0, tolerance);
    }
    nn_plan_free(p);
    nn_graph_free(g);
}

static void resnet20_computes_pytorchs_logits(void)
{
    if (!file_exists(DATA "weights/resnet20-12fca82f.th")) SKIP("no " DATA "weights");
    check_logits("resnet20", DATA "weights/resnet20-12fca82f.th", DATA "fixtures/resnet20_sin_logits.csv", 1e-4);
}

static void resnet56_computes_pytorchs_logits(void)
{
    if (!file_exists(DATA "weights/resnet56-4bfd9763.th")) SKIP("no " DATA "weights");
    check_logits("resnet56", DATA "weights/resnet56-4bfd9763.th", DATA "fixtures/resnet56_sin_logits.csv", 1e-4);
}

static void mobilenetv2_computes_pytorchs_logits(void)
{
    if (!file_exists(DATA "weights/mobilenet_v2_1.0_deq_fp32.pth")) SKIP("no " DATA "weights");
    check_logits("mobilenetv2", DATA "weights/mobilenet_v2_1.0_deq_fp32.pth",
                 DATA "fixtures/mobilenet_v2_sin_logits.csv", 1e-3);
}

static void weights_of_another_network_are_refused(void)
{
    if (!file_exists(DATA "weights/resnet56-4bfd9763.th")) SKIP("no " DATA "weights");
    err e = { 0 };
    nn_graph *g = make("resnet20", (nn_build){ 0 });
    CHECK(!nn_import(g, DATA "weights/resnet56-4bfd9763.th", &e) && strstr(e.msg, " extra (layer1.3.conv1.weight"));
    CHECK(!strstr(e.msg, "missing"));
    nn_graph_free(g);
}

/* ---- transfer -------------------------------------------------------------------------------------------- */

/* The head of resnet20 has 64 inputs; the file's holds 0, 1, 2, …, 999, 0, … over its 10 classes. */
static float file_weight(int class, int i) { return (float)((class * 64 + i) % 1000); }

static void a_head_for_other_classes_keeps_its_own_values(void)
{
    err e = { 0 };
    nn_graph *ten = make("resnet20", (nn_build){ 0 }), *g = make("resnet20", (nn_build){ .classes = 4 });
    nn_state_init(g, 3);
    nn_transferred t;
    listing l = list(ten);
    save(&l);
    const int head = nn_param_find(g, "linear.weight");
    const float before = g->param[head].x[5];
    CHECK_OK(nn_transfer(g, file, NULL, &t, &e), e);
    CHECK(t.fate == NN_HEAD_KEPT && t.tensors == g->n_param - 2 && !strcmp(t.head, "linear"));
    CHECK(g->param[head].x[5] == before && g->param[3].x[2] == 2.0f);
    CHECK_OK(nn_transfer(ten, file, NULL, &t, &e), e);
    CHECK(t.fate == NN_HEAD_LOADED && t.tensors == ten->n_param && ten->param[head].x[70] == file_weight(1, 6));
    l.t[0].dim[3] = 5;                                   /* conv1.weight: not the head's */
    save(&l);
    CHECK(!nn_transfer(g, file, NULL, &t, &e) && strstr(e.msg, "1 of another shape (conv1.weight"));
    l.t[0].dim[3] = 3;
    l.t[head].dim[1] = 32;                               /* the head's inputs are the backbone's */
    save(&l);
    CHECK(!nn_transfer(g, file, NULL, &t, &e) && strstr(e.msg, "linear.weight is 10x32, wants 4x64"));
    list_free(&l);
    nn_graph_free(ten);
    nn_graph_free(g);
}

static void classes_of_a_head_can_be_picked(void)
{
    err e = { 0 };
    nn_graph *ten = make("resnet20", (nn_build){ 0 }), *g = make("resnet20", (nn_build){ .classes = 3 });
    nn_transferred t;
    listing l = list(ten);
    save(&l);
    static const int32_t row[] = { 7, 0, 2 };
    CHECK_OK(nn_transfer(g, file, &(nn_head_map){ row, 3, 10 }, &t, &e), e);
    CHECK(t.fate == NN_HEAD_PICKED && t.tensors == g->n_param);
    const float *w = g->param[nn_param_find(g, "linear.weight")].x, *b = g->param[nn_param_find(g, "linear.bias")].x;
    for (int o = 0; o < 3; o++) {
        CHECK(b[o] == (float)row[o]);
        for (int i = 0; i < 64; i++)
            CHECK(w[o * 64 + i] == file_weight(row[o], i));
    }
    CHECK(!nn_transfer(g, file, &(nn_head_map){ row, 3, 1000 }, &t, &e) && e.code == ERR_CONFIG);
    CHECK(strstr(e.msg, "linear.weight: it has 10 classes, picking 3 of 1000"));
    list_free(&l);
    nn_graph_free(ten);
    nn_graph_free(g);
}

int main(void)
{
    START(2);
    make_dir();
    file = in_dir("w.safetensors");
    RUN(what_does_not_fit_is_named_and_counted);
    RUN(many_faults_are_counted_and_all_named);
    RUN(values_that_are_not_finite_are_refused);
    RUN(a_missing_file_is_missing_input);
    RUN(prefixes_of_data_parallel_and_step_counters_do_not_matter);
    RUN(timms_mobilenetv2_is_read);
    RUN(a_linear_layer_stored_as_a_convolution_is_read);
    RUN(resnet20_computes_pytorchs_logits);
    RUN(resnet56_computes_pytorchs_logits);
    RUN(mobilenetv2_computes_pytorchs_logits);
    RUN(weights_of_another_network_are_refused);
    RUN(a_head_for_other_classes_keeps_its_own_values);
    RUN(classes_of_a_head_can_be_picked);
    remove_dir();
    core_stop();
    END();
}
