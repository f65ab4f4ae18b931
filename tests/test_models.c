/* The builders against published sizes, names and counts. */
#include "data/data.h"
#include "nn/nn.h"
#include "tests/test.h"

#include <stdlib.h>
#include <unistd.h>

static nn_graph *make(const char *name, nn_build b)
{
    err e = { 0 };
    nn_graph *g = nn_model_find(name)->build(&b, &e);
    CHECK_OK(g, e);
    return g;
}

typedef struct { int convs, searched; int64_t macs, searched_macs; } conv_totals;

static conv_totals convs_of(const nn_graph *g)
{
    conv_totals t = { 0 };
    for (int i = 0; i < g->n_node; i++)
        if (g->node[i].op == NN_OP_conv2d) {
            bool searched = !g->node[i].attr.fixed;
            t.convs++;
            t.searched += searched;
            t.macs += nn_node_macs(g, i);
            t.searched_macs += searched ? nn_node_macs(g, i) : 0;
        }
    return t;
}

/* Parameters as torchvision, akamaster and timm publish them; convolutions in the search and
 * multiply-adds as in the algorithm's section 7. */
static void sizes_are_the_published_ones(void)
{
    static const struct { const char *name; double width; int64_t weights; int convs, searched; double conv_mmacs; } want[] = {
        { "resnet20", 0, 269722, 19, 18, 40.55 },
        { "resnet56", 0, 853018, 55, 54, 125.49 },
        { "resnet18", 0, 11689512, 20, 16, 1813.56 },
        { "resnet34", 0, 21797672, 36, 32, 3663.25 },
        { "resnet50", 0, 25557032, 53, 48, 4087.14 },
        { "mobilenetv2", 1.0, 3504872, 52, 50, 299.5 },
        { "mobilenetv2", 1.4, 6108776, 52, 50, 580.4 },
        { "vgg19_bn", 0, 143678248, 16, 16, 19508.43 },
        { "vgg8_bn", 0, 437034, 7, 7, 48.07 },
    };
    for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
        nn_graph *g = make(want[i].name, (nn_build){ .width = want[i].width });
        conv_totals t = convs_of(g);
        CHECK(nn_graph_weights(g) == want[i].weights);
        CHECK(t.convs == want[i].convs && t.searched == want[i].searched);
        CHECK_CLOSE((double)t.macs / 1e6, want[i].conv_mmacs, 0.006);
        nn_graph_free(g);
    }
}

/* Section 7.1 counts ResNet-34's stem and chain, not the projections. */
static void resnet34_has_3_64_g_multiply_adds_without_projections(void)
{
    nn_graph *g = make("resnet34", (nn_build){ 0 });
    double stem = (double)nn_node_macs(g, nn_graph_find(g, "conv1"));
    CHECK_CLOSE(((double)convs_of(g).searched_macs + stem) / 1e9, 3.64, 0.005);
    nn_graph_free(g);
}

static void mobilenetv2_has_the_channels_of_its_width(void)
{
    static const int at_1_0[52] = {
        32, 32, 16, 96, 96, 24, 144, 144, 24, 144, 144, 32, 192, 192, 32, 192, 192, 32, 192, 192, 64,
        384, 384, 64, 384, 384, 64, 384, 384, 64, 384, 384, 96, 576, 576, 96, 576, 576, 96,
        576, 576, 160, 960, 960, 160, 960, 960, 160, 960, 960, 320, 1280,
    };
    static const int at_1_4[52] = {
        48, 48, 24, 144, 144, 32, 192, 192, 32, 192, 192, 48, 288, 288, 48, 288, 288, 48, 288, 288, 88,
        528, 528, 88, 528, 528, 88, 528, 528, 88, 528, 528, 136, 816, 816, 136, 816, 816, 136,
        816, 816, 224, 1344, 1344, 224, 1344, 1344, 224, 1344, 1344, 448, 1792,
    };
    for (int wide = 0; wide < 2; wide++) {
        nn_graph *g = make("mobilenetv2", (nn_build){ .width = wide ? 1.4 : 1.0 });
        int n = 0;
        for (int i = 0; i < g->n_node; i++)
            if (g->node[i].op == NN_OP_conv2d && n < 52) {
                CHECK(g->node[i].dim[3] == (wide ? at_1_4 : at_1_0)[n]);
                CHECK((g->node[i].attr.groups > 1) == (n % 3 == 1 && n < 51));
                n++;
            }
        CHECK(n == 52);
        nn_graph_free(g);
    }
    nn_graph *half = make("mobilenetv2", (nn_build){ .width = 0.5 });
    CHECK(half->node[nn_graph_find(half, "features.18.0")].dim[3] == 1280);   /* never below 1280 */
    nn_graph_free(half);
}

static bool is_fixed(const nn_graph *g, const char *name)
{
    int id = nn_graph_find(g, name);
    CHECK(id >= 0);
    return id >= 0 && g->node[id].attr.fixed;
}

static void stem_projections_and_last_convolution_are_outside_the_search(void)
{
    nn_graph *r = make("resnet50", (nn_build){ 0 }), *m = make("mobilenetv2", (nn_build){ 0 });
    nn_graph *c = make("resnet20", (nn_build){ 0 }), *v = make("vgg19_bn", (nn_build){ .h = 32, .w = 32 });
    CHECK(is_fixed(r, "conv1") && is_fixed(r, "layer1.0.downsample.0") && !is_fixed(r, "layer1.0.conv1"));
    CHECK(is_fixed(m, "features.0.0") && is_fixed(m, "features.18.0") && !is_fixed(m, "features.17.conv.2"));
    CHECK(is_fixed(c, "conv1") && !is_fixed(c, "layer2.0.conv1"));
    CHECK(!is_fixed(v, "features.0"));
    CHECK(r->barrier == NN_BARRIER_STRIDE && c->barrier == NN_BARRIER_STRIDE);
    CHECK(m->barrier == NN_BARRIER_STRIDE_1X1 && v->barrier == NN_BARRIER_NONE);
    nn_graph_free(r);
    nn_graph_free(m);
    nn_graph_free(c);
    nn_graph_free(v);
}

static void check_skips(const char *name, nn_build b, int adds)
{
    nn_graph *g = make(name, b);
    int n = 0;
    for (int i = 0; i < g->n_node; i++) {
        const nn_node *a = &g->node[i];
        if (a->op != NN_OP_add)
            continue;
        n++;
        CHECK(g->node[a->in[0]].op == NN_OP_batchnorm);      /* the branch ends in its norm */
        nn_opcode skip = g->node[a->in[1]].op;
        CHECK(a->in[1] < a->in[0] || skip == NN_OP_slice || skip == NN_OP_batchnorm);
    }
    CHECK(n == adds);
    nn_graph_free(g);
}

static void adds_read_the_branch_first_and_the_skip_second(void)
{
    check_skips("resnet20", (nn_build){ 0 }, 9);
    check_skips("resnet34", (nn_build){ 0 }, 16);
    check_skips("resnet50", (nn_build){ 0 }, 16);
    check_skips("mobilenetv2", (nn_build){ 0 }, 10);
}

static void check_dim(const nn_graph *g, const char *name, int64_t size, int64_t channels)
{
    int id = nn_graph_find(g, name);
    CHECK(id >= 0 && g->node[id].dim[1] == size && g->node[id].dim[2] == size && g->node[id].dim[3] == channels);
}

static void maps_have_the_published_sizes(void)
{
    nn_graph *r = make("resnet34", (nn_build){ 0 }), *m = make("mobilenetv2", (nn_build){ 0 });
    check_dim(r, "maxpool", 56, 64);
    check_dim(r, "layer4.2.add", 7, 512);
    check_dim(m, "features.0.0", 112, 32);
    check_dim(m, "features.18.0", 7, 1280);
    nn_graph_free(r);
    nn_graph_free(m);
}

static void small_images_get_the_small_stem(void)
{
    nn_build small = { .classes = 10, .h = 32, .w = 32 };
    nn_graph *r = make("resnet18", small), *m = make("mobilenetv2", small), *v = make("vgg19_bn", small);
    CHECK(nn_graph_find(r, "maxpool") < 0);
    check_dim(r, "conv1", 32, 64);
    check_dim(r, "layer4.1.add", 4, 512);
    check_dim(m, "features.0.0", 32, 32);
    check_dim(m, "features.3.add", 32, 24);          /* the 24-channel stage keeps its size */
    check_dim(m, "features.18.0", 4, 1280);
    check_dim(v, "features.52", 1, 512);
    check_dim(v, "classifier", 1, 10);
    nn_graph_free(r);
    nn_graph_free(m);
    nn_graph_free(v);
}

static void option_a_keeps_every_second_pixel_between_zero_channels(void)
{
    nn_graph *g = make("resnet20", (nn_build){ 0 });
    const nn_node *s = &g->node[nn_graph_find(g, "layer2.0.shortcut")];
    CHECK(s->op == NN_OP_slice && s->attr.stride[0] == 2 && s->attr.chan[0] == 8 && s->attr.chan[1] == 8);
    s = &g->node[nn_graph_find(g, "layer3.0.shortcut")];
    CHECK(s->attr.chan[0] == 16 && s->attr.chan[1] == 16);
    nn_graph_free(g);
}

static void names_are_torchvisions(void)
{
    static const struct { const char *model, *param[5]; } want[] = {
        { "resnet20", { "layer3.2.bn2.running_var", "linear.bias" } },
        { "resnet18", { "bn1.weight", "fc.weight" } },
        { "resnet50", { "layer2.0.downsample.1.weight", "layer1.0.conv3.weight" } },
        { "mobilenetv2", { "features.1.conv.0.0.weight", "features.1.conv.2.bias", "features.2.conv.1.1.running_mean",
                           "features.17.conv.3.weight", "classifier.1.weight" } },
        { "vgg19_bn", { "features.0.bias", "features.50.running_var", "classifier.0.bias", "classifier.6.weight" } },
    };
    for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
        nn_graph *g = make(want[i].model, (nn_build){ 0 });
        for (int k = 0; k < 5 && want[i].param[k]; k++) {
            if (nn_param_find(g, want[i].param[k]) < 0)
                fprintf(stderr, "%s has no %s\n", want[i].model, want[i].param[k]);
            CHECK(nn_param_find(g, want[i].param[k]) >= 0);
        }
        nn_graph_free(g);
    }
}

static void every_model_prints_parses_and_checks(void)
{
    static const nn_build sizes[] = { { 0 }, { .classes = 7, .h = 28, .w = 28, .c = 1 } };
    for (const nn_model *const *m = nn_models; *m; m++)
        for (int s = !strcmp((*m)->name, "vgg19_bn"); s < 2; s++) {     /* half a gigabyte at full size */
            err e = { 0 };
            nn_graph *g = make((*m)->name, sizes[s]);
            CHECK_OK(nn_graph_check(g, &e), e);
            buf text = { 0 }, again = { 0 };
            nn_graph_print(g, &text);
            nn_graph *h = nn_graph_parse(text.data, &e);
            CHECK_OK(h, e);
            if (h) {
                nn_graph_print(h, &again);
                CHECK_TEXT(again.data, text.data);
                CHECK(h->barrier == g->barrier);
            }
            data_prep p;
            CHECK_OK(data_prep_parse(&p, g->prep, &e), e);
            CHECK(p.h == g->node[0].dim[1] && p.c == g->node[0].dim[3]);
            CHECK(p.resize == (p.h == 224 ? 256 : 0));
            CHECK_CLOSE(p.mean[0], p.c == 1 ? 0.2860 : 0.485, 1e-6);
            buf_free(&text);
            buf_free(&again);
            nn_graph_free(g);
            nn_graph_free(h);
        }
}

static void check_memory(nn_graph *g, nn_mode mode, int batch, const char *name)
{
    err e = { 0 };
    nn_plan *p = nn_plan_new(g, mode, batch, &e);
    CHECK_OK(p, e);
    if (!p) return;
    nn_plan_info m = nn_plan_describe(p);
    CHECK(m.live_bytes > 0 && m.arena_bytes >= m.live_bytes);
    CHECK(m.arena_bytes <= m.live_bytes + m.live_bytes / 5);
    if (m.arena_bytes > m.live_bytes + m.live_bytes / 5)
        fprintf(stderr, "%s, mode %d, batch %d: arena %zu, live %zu\n", name, mode, batch, m.arena_bytes, m.live_bytes);
    nn_plan_free(p);
}

static void an_arena_is_at_most_a_fifth_larger_than_what_is_alive(void)
{
    for (const nn_model *const *m = nn_models; *m; m++) {
        err e = { 0 };
        bool full = strcmp((*m)->name, "vgg19_bn");             /* half a gigabyte at full size */
        nn_graph *g = make((*m)->name, full ? (nn_build){ 0 } : (nn_build){ .h = 64, .w = 64, .classes = 10 });
        nn_graph *l = nn_graph_with_loss(g, 0, 0, 0, &e);
        CHECK_OK(l, e);
        check_memory(g, NN_INFER, 1, (*m)->name);
        check_memory(g, NN_INFER, 32, (*m)->name);
        check_memory(l, NN_TRAIN, 8, (*m)->name);
        nn_graph_free(g);
        nn_graph_free(l);
    }
}

static void every_model_runs_on_small_images(void)
{
    for (const nn_model *const *m = nn_models; *m; m++) {
        err e = { 0 };
        nn_build b = { .classes = 5, .h = 32, .w = 32 };
        nn_graph *g = nn_model_open((*m)->name, &b, 3, &e);
        CHECK_OK(g, e);
        nn_plan *p = nn_plan_new(g, NN_INFER, 2, &e);
        CHECK_OK(p, e);
        if (p) {
            rng r = rng_at(1, RNG_TEST, 0, 0);
            float *x = nn_plan_input(p, 0);
            for (int i = 0; i < 32 * 32 * 3; i++)
                x[i] = x[32 * 32 * 3 + i] = (float)rng_normal(&r);
            nn_plan_forward(p);
            const float *y = nn_plan_output(p);
            bool moved = false;
            for (int i = 0; i < 5; i++) {
                CHECK(isfinite(y[i]));
                CHECK_CLOSE(y[i], y[5 + i], 1e-4 * fabs((double)y[i]));      /* equal images, equal outputs */
                moved |= y[i] != y[0];
            }
            CHECK(moved);
        }
        nn_plan_free(p);
        nn_graph_free(g);
    }
}

static void refuse(const char *name, nn_build b, const char *because)
{
    err e = { 0 };
    nn_graph *g = nn_model_find(name)->build(&b, &e);
    CHECK(!g && e.code == ERR_CONFIG);
    if (!strstr(e.msg, because))
        fprintf(stderr, "\"%s\" does not say \"%s\"\n", e.msg, because);
    CHECK(strstr(e.msg, because));
    nn_graph_free(g);
}

static void values_that_no_network_has_are_refused(void)
{
    refuse("resnet20", (nn_build){ .width = 1.4 }, "one width");
    refuse("mobilenetv2", (nn_build){ .width = 1000 }, "1000");
    refuse("resnet20", (nn_build){ .classes = -1 }, "-1 classes");
    refuse("resnet20", (nn_build){ .c = 4 }, "4,32,32");
    refuse("vgg19_bn", (nn_build){ .h = 200, .w = 200 }, "6 x 6");
}

static void an_input_size_is_three_positive_numbers(void)
{
    err e = { 0 };
    nn_build b = { 0 };
    CHECK_OK(nn_build_input(&b, NULL, &e), e);
    CHECK(b.h == 0);
    CHECK_OK(nn_build_input(&b, "1,28,30", &e), e);
    CHECK(b.c == 1 && b.h == 28 && b.w == 30);
    static const char *const bad[] = { "", "3", "3,32", "3,32,32,", "3,32,x", "3,-1,32", "0,32,32" };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        e.code = ERR_NONE;
        CHECK(!nn_build_input(&b, bad[i], &e) && e.code == ERR_USAGE);
    }
}

static void a_model_opens_by_name_or_from_its_file(void)
{
    err e = { 0 };
    make_dir();
    const char *path = in_dir("m.safetensors");
    nn_build b = { .classes = 4, .h = 16, .w = 16 };
    nn_graph *g = nn_model_open("resnet20", &b, 1, &e), *h, *other = nn_model_open("resnet20", &b, 2, &e);
    CHECK_OK(g && other && nn_model_save(g, path, NULL, 0, &e), e);
    CHECK(memcmp(g->param[0].x, other->param[0].x, 64));         /* the seed decides */
    CHECK_OK((h = nn_model_open(path, &b, 1, &e)), e);
    CHECK(h && h->barrier == g->barrier && !strcmp(h->prep, g->prep) &&
          !memcmp(h->param[5].x, g->param[5].x, sizeof(float) * (size_t)nn_param_count(&g->param[5])));
    nn_graph_free(h);
    CHECK_OK((h = nn_model_open(path, NULL, 1, &e)), e);
    nn_graph_free(h);
    CHECK(!nn_model_open(path, &(nn_build){ .classes = 10 }, 1, &e) && strstr(e.msg, "4 classes, not 10"));
    CHECK(!nn_model_open(path, &(nn_build){ .h = 32, .w = 32, .c = 3 }, 1, &e) && strstr(e.msg, "3,16,16"));
    CHECK(!nn_model_open("resnet21", NULL, 1, &e) && e.code == ERR_NOINPUT && strstr(e.msg, "resnet20"));
    remove_dir();
    nn_graph_free(g);
    nn_graph_free(other);
}

/* Whatever allocation fails, a builder answers with an error and leaks nothing. */
static void a_builder_survives_running_out_of_memory(void)
{
    nn_build b = { 0 };
    int failed = 0;
    for (int k = 1; k < 400; k += 7) {
        err e = { 0 };
        mem_fail_at(k);
        nn_graph *g = nn_model_find("resnet20")->build(&b, &e);
        mem_fail_at(0);
        CHECK(g || e.code == ERR_NOMEM);
        failed += !g;
        nn_graph_free(g);
    }
    CHECK(failed > 5);
}

int main(void)
{
    START(2);
    RUN(sizes_are_the_published_ones);
    RUN(resnet34_has_3_64_g_multiply_adds_without_projections);
    RUN(mobilenetv2_has_the_channels_of_its_width);
    RUN(stem_projections_and_last_convolution_are_outside_the_search);
    RUN(adds_read_the_branch_first_and_the_skip_second);
    RUN(maps_have_the_published_sizes);
    RUN(small_images_get_the_small_stem);
    RUN(option_a_keeps_every_second_pixel_between_zero_channels);
    RUN(names_are_torchvisions);
    RUN(every_model_prints_parses_and_checks);
    RUN(an_arena_is_at_most_a_fifth_larger_than_what_is_alive);
    RUN(every_model_runs_on_small_images);
    RUN(values_that_no_network_has_are_refused);
    RUN(an_input_size_is_three_positive_numbers);
    RUN(a_model_opens_by_name_or_from_its_file);
    RUN(a_builder_survives_running_out_of_memory);
    core_stop();
    END();
}
