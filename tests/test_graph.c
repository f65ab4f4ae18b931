/* Graphs, their text form, parameters and model files. */
#include <stdlib.h>
#include <unistd.h>

#include "tests/test.h"
#include "tests/naive.h"
#include "core/io.h"

/* stem, a block with a projection, every attribute away from its default somewhere. */
static nn_graph *small_net(err *e)
{
    nn_graph *g = nn_graph_new("small net, \"quoted\"", e);
    int x = nn_add_input(g, "x", 9, 7, 3, e);
    x = nn_add_norm(g, "bn1", nn_add_conv(g, "conv1", x, 8, 3, 1, 1, 1, false, true, e), e);
    x = nn_add_op(g, NN_OP_relu, "relu1", x, e);
    const nn_attr odd = { .out = 8, .k = { 3, 2 }, .stride = { 2, 1 }, .pad = { 1, 0, 2, 1 },
                          .dilation = { 1, 2 }, .groups = 4, .bias = true };
    int y = nn_node_add(g, NN_OP_conv2d, "layer1.0.conv1", &x, 1, &odd, e);
    y = nn_node_add(g, NN_OP_batchnorm, "layer1.0.bn1", &y, 1,
                    &(nn_attr){ .eps = 1e-3f, .momentum = 0.03f }, e);
    y = nn_add_op(g, NN_OP_relu6, "layer1.0.relu", y, e);
    y = nn_node_add(g, NN_OP_pad, "layer1.0.pad", &y, 1, &(nn_attr){ .pad = { -1, 2, 0, -1 } }, e);
    y = nn_node_add(g, NN_OP_maxpool, "pool", &y, 1,
                    &(nn_attr){ .k = { 2, 3 }, .stride = { 1, 2 }, .pad = { 1, 0, 1, 1 } }, e);
    int z = nn_node_add(g, NN_OP_slice, "slice", &y, 1,
                        &(nn_attr){ .stride = { 2, 1 }, .chan = { 3, 4 } }, e);
    z = nn_node_add(g, NN_OP_avgpool, "avg", &z, 1, &(nn_attr){ .k = { 2, 2 }, .count_pad = true },
                    e);
    z = nn_node_add(g, NN_OP_concat, "cat", (int[]){ z, z }, 2, NULL, e);
    z = nn_node_add(g, NN_OP_dropout, "drop", &z, 1, &(nn_attr){ .p = 0.1f }, e);
    g->output = nn_add_linear(g, "fc", z, 4, true, e);
    g->barrier = NN_BARRIER_STRIDE_1X1;
    snprintf(g->prep, sizeof g->prep, "resize=8 crop=%s", "\\ \"7\"\nend");
    return g;
}

static char *text_of(const nn_graph *g)
{
    buf b = { 0 };
    nn_graph_print(g, &b);
    return b.data;
}

static void the_text_form_round_trips(void)
{
    err e = { 0 };
    nn_graph *g = small_net(&e);
    CHECK_OK(g->output >= 0, e);
    nn_graph *l = nn_graph_with_loss(g, 0.1, 0.25, 4, &e);
    CHECK_OK(l, e);
    char *text = text_of(l);
    nn_graph *h = nn_graph_parse(text, &e);
    CHECK_OK(h, e);
    char *again = h ? text_of(h) : NULL;
    CHECK_TEXT(again, text);
    CHECK(h && h->output == l->output && h->barrier == l->barrier && h->n_param == l->n_param);
    CHECK_TEXT(h ? h->prep : NULL, l->prep);
    CHECK_TEXT(h ? h->arch : NULL, l->arch);
    for (int i = 0; h && i < l->n_node; i++) {
        CHECK(memcmp(h->node[i].dim, l->node[i].dim, sizeof l->node[i].dim) == 0);
        CHECK(memcmp(&h->node[i].attr, &l->node[i].attr, sizeof(float)) == 0);
        CHECK(h->node[i].attr.eps == l->node[i].attr.eps &&
              h->node[i].attr.momentum == l->node[i].attr.momentum);
        CHECK(h->node[i].attr.smoothing == l->node[i].attr.smoothing &&
              h->node[i].attr.weight == l->node[i].attr.weight);
    }
    mem_free(text);
    mem_free(again);
    nn_graph_free(g);
    nn_graph_free(l);
    nn_graph_free(h);
}

static void garbage_is_refused_with_its_line(void)
{
    static const struct { const char *text, *says; } bad[] = {
        { "", "line 1" },
        { "net\n", "line 1" },
        { "graph arch=resnet\n", "line 1" },
        { "graph arch=\"r\n", "line 1" },
        { "graph barrier=tall\n", "line 1" },
        { "graph output=fc\nx = input() size=4,4,3\n", "output fc" },
        { "graph\nx = input() size=4,4\n", "line 2" },
        { "graph\nx = input() size=4,4,3,1\n", "line 2" },
        { "graph\nx = input() size=4,4,3.5\n", "line 2" },
        { "graph\nx = input() size=4,4,nan\n", "line 2" },
        { "graph\nx = input() size=0,4,3\n", "line 2" },
        { "graph\nx = input() size=4,4,-3\n", "line 2" },
        { "graph\nx = input() size=9999999999,4,3\n", "line 2" },
        { "graph\nx = input() size=1048576,1048576,1048576\n", "line 2" },
        { "graph\nx = input() size=4,4,3 size=4,4,3\n", "line 2" },
        { "graph\nx = input() size=4,4,3 k=3,3\n", "line 2" },
        { "graph\nx = input() colour=3\n", "line 2" },
        { "graph\nx = input(x) size=4,4,3\n", "line 2" },
        { "graph\n\n# fine\nx = input() size=4,4,3\ny = relu(z)\n", "line 5" },
        { "graph\nx = input() size=4,4,3\nx = relu(x)\n", "line 3" },
        { "graph\nx = input() size=4,4,3\ny = rleu(x)\n", "line 3" },
        { "graph\nx = input() size=4,4,3\ny = relu(x\n", "line 3" },
        { "graph\nx = input() size=4,4,3\ny = relu(x) )\n", "line 3" },
        { "graph\nx = input() size=4,4,3\ny = relu()\n", "line 3" },
        { "graph\nx = input() size=4,4,3\ny = relu(x, x)\n", "line 3" },
        { "graph\nx = input() size=4,4,3\ny = concat(x,x,x,x,x)\n", "line 3" },
        { "graph\nx = input() size=4,4,3\ny = conv2d(x) out=4 k=7,7\n", "line 3" },
        { "graph\nx = input() size=4,4,3\ny = conv2d(x) out=4 groups=2\n", "line 3" },
        { "graph\nx = input() size=4,4,3\ny = conv2d(x) out=4 bias=2\n", "line 3" },
        { "graph\nx = input() size=4,4,3\ny = conv2d(x) k=3,3\n", "line 3" },
        { "graph\nx = input() size=4,4,3\ny = pad(x) pad=-4,0,0,0\n", "line 3" },
        { "graph\nx = input() size=4,4,3\ny = pad(x) pad=-4,4,0,0\n", "line 3" },
        { "graph\nx = input() size=4,4,3\ny = maxpool(x) k=2,2 pad=2,0,0,0\n", "line 3" },
        { "graph\nx = input() size=4,4,3\ny = softmax_xent(x, x)\n", "line 3" },
        { "graph\nx = input() size=4,4,3\ny = dropout(x) p=1\n", "line 3" },
        { "graph\nx = input() size=4,4,3\ny = batchnorm(x) eps=-1\n", "line 3" },
        { "graph\nx = input() size=4,4,3\n\x80 = relu(x)\n", "line 3" },
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        err e = { 0 };
        nn_graph *g = nn_graph_parse(bad[i].text, &e);
        if (g || !strstr(e.msg, bad[i].says))
            fprintf(stderr, "case %zu: %s\n%s", i, g ? "accepted" : e.msg, bad[i].text);
        CHECK(!g);
        CHECK(strstr(e.msg, bad[i].says));
        nn_graph_free(g);
    }
}

/* Whatever is cut off or overwritten: a graph or an error, never more. */
static void damaged_text_never_does_harm(void)
{
    err e = { 0 };
    nn_graph *g = small_net(&e);
    char *text = text_of(g);
    const size_t len = strlen(text);
    for (size_t cut = 0; cut < len; cut++) {
        const char was = text[cut];
        text[cut] = 0;
        nn_graph_free(nn_graph_parse(text, &e));
        text[cut] = was;
    }
    rng r = rng_at(1, RNG_TEST, 0, 0);
    static const char junk[] = "(),=\"\\ \n0918.-eax#";
    for (int i = 0; i < 3000; i++) {
        char *copy = mem_text(text, &e);
        for (int k = between(&r, 1, 4); k > 0; k--)
            copy[rng_below(&r, (uint32_t)len)] = junk[rng_below(&r, sizeof junk - 1)];
        nn_graph *h = nn_graph_parse(copy, &e);
        if (h && h->output >= 0)
            CHECK_OK(nn_graph_check(h, &e), e);
        nn_graph_free(h);
        mem_free(copy);
    }
    mem_free(text);
    nn_graph_free(g);
}

static void shapes_that_do_not_fit_name_the_node_and_both_numbers(void)
{
    err e = { 0 };
    nn_graph *g = nn_graph_new("g", &e);
    const int a = nn_add_input(g, "a", 4, 4, 3, &e), b = nn_add_input(g, "b", 4, 5, 3, &e);
    CHECK(nn_add_add(g, "sum", a, b, &e) == -1);
    CHECK(e.code == ERR_CONFIG && strstr(e.msg, "sum") && strstr(e.msg, "4x4x3") &&
          strstr(e.msg, "4x5x3"));
    /* a chain of calls keeps its cause */
    CHECK(nn_add_op(g, NN_OP_relu, "later", -1, &e) == -1 && strstr(e.msg, "sum"));
    CHECK(nn_add_op(g, NN_OP_relu, "a", b, &e) == -1 && strstr(e.msg, "two nodes are called a"));
    CHECK(nn_add_op(g, NN_OP_relu, "a b", b, &e) == -1);
    CHECK(nn_add_conv(g, "conv", a, 8, 3, 1, 1, 2, false, false, &e) == -1 &&
          strstr(e.msg, "conv"));
    CHECK(g->n_node == 2 && g->n_param == 0);
    CHECK(nn_node_add(g, NN_OP_relu, "r", &a, 1, &(nn_attr){ .out = 3 }, &e) == -1 &&
          strstr(e.msg, "no attribute out"));
    nn_graph_free(g);
}

static void prune_drops_what_the_output_does_not_need(void)
{
    err e = { 0 };
    nn_graph *g = nn_graph_new("g", &e);
    const int x = nn_add_input(g, "x", 4, 4, 3, &e);
    nn_add_conv(g, "idle", x, 8, 3, 1, 1, 1, false, false, &e);
    const int y = nn_add_conv(g, "used", x, 8, 3, 1, 1, 1, false, false, &e);
    g->output = nn_add_op(g, NN_OP_globalpool, "out", y, &e);
    random_params(g, 3);
    nn_graph *l = nn_graph_with_loss(g, 0, 0, 0, &e);
    nn_graph *p = nn_graph_prune(l, &e);
    CHECK_OK(p && nn_graph_check(p, &e), e);
    CHECK(nn_graph_find(p, "idle") < 0 && nn_param_find(p, "idle.weight") < 0);
    CHECK(nn_graph_find(p, "loss") >= 0 && nn_graph_find(p, "target") >= 0);
    CHECK(p->output == nn_graph_find(p, "out"));
    CHECK(memcmp(p->param[0].x, g->param[1].x, 8 * 27 * sizeof(float)) == 0);
    int user[2];
    CHECK(nn_graph_users(g, x, user, 2) == 2 && user[1] == y);
    nn_graph_free(g);
    nn_graph_free(l);
    nn_graph_free(p);
}

static void a_graph_changed_by_hand_is_checked(void)
{
    err e = { 0 };
    nn_graph *g = small_net(&e);
    CHECK_OK(nn_graph_check(g, &e), e);
    nn_graph *copy = nn_graph_copy(g, &e);
    copy->node[1].attr.out = 9;
    CHECK(!nn_graph_check(copy, &e));
    nn_graph_free(copy);
    copy = nn_graph_copy(g, &e);
    copy->node[3].in[0] = 5;
    CHECK(!nn_graph_check(copy, &e));
    CHECK(!nn_plan_new(copy, NN_INFER, 1, &e));
    nn_graph_free(copy);
    copy = nn_graph_copy(g, &e);
    copy->output = copy->n_node;
    CHECK(!nn_graph_check(copy, &e));
    nn_graph_free(copy);
    nn_graph_free(g);
}

static void macs_and_weights_are_counted(void)
{
    err e = { 0 };
    nn_graph *g = nn_graph_new("g", &e);
    int x = nn_add_input(g, "x", 8, 6, 4, &e);
    x = nn_add_norm(g, "bn", nn_add_conv(g, "c", x, 8, 3, 2, 1, 2, false, false, &e), &e);
    g->output = nn_add_linear(g, "fc", x, 5, true, &e);
    CHECK(nn_node_macs(g, 1) == 4 * 3 * 8 * 2 * 9);
    CHECK(nn_graph_macs(g) == 4 * 3 * 8 * 2 * 9 + 5 * 4 * 3 * 8);
    CHECK(nn_graph_weights(g) == 8 * 2 * 9 + 16 + 5 * 96 + 5);
    nn_graph_free(g);
}

static void initialisation_is_hes_and_repeats(void)
{
    err e = { 0 };
    nn_graph *g = nn_graph_new("g", &e);
    int x = nn_add_input(g, "x", 8, 8, 64, &e);
    x = nn_add_norm(g, "bn", nn_add_conv(g, "c", x, 96, 3, 1, 1, 1, true, false, &e), &e);
    g->output = nn_add_linear(g, "fc", x, 10, true, &e);
    nn_state_init(g, 5);
    const nn_param *w = &g->param[0], *fc = &g->param[nn_param_find(g, "fc.weight")];
    double sum = 0, squares = 0, most = 0;
    const int64_t n = nn_param_count(w);
    for (int64_t i = 0; i < n; i++) {
        sum += (double)w->x[i];
        squares += (double)w->x[i] * (double)w->x[i];
    }
    CHECK_CLOSE(sum / (double)n, 0, 1e-3);
    CHECK_CLOSE(sqrt(squares / (double)n), sqrt(2.0 / (96 * 9)), 1e-3);
    for (int64_t i = 0; i < nn_param_count(fc); i++)
        most = fmax(most, fabs((double)fc->x[i]));
    CHECK(most <= 1 / 78.38 && most > 0.95 / 78.38);        /* sqrt(8*8*96) = 78.38 */
    CHECK(g->param[1].x[3] == 0 && g->param[2].x[3] == 1 && g->param[5].x[3] == 1);
    nn_graph *h = nn_graph_copy(g, &e);
    nn_state_init(h, 5);
    CHECK(memcmp(h->param[0].x, w->x, (size_t)n * sizeof(float)) == 0);
    nn_state_init(h, 6);
    CHECK(memcmp(h->param[0].x, w->x, (size_t)n * sizeof(float)) != 0);
    CHECK(nn_state_copy(h, g) == g->n_param);
    CHECK(memcmp(h->param[0].x, w->x, (size_t)n * sizeof(float)) == 0);
    nn_state_reset(h, 1, 9, 0);
    const double bound = 1 / sqrt(64.0 * 9);
    for (int64_t i = 0; i < n; i++)
        CHECK(fabs((double)h->param[0].x[i]) <= bound);
    CHECK(h->param[1].x[0] != 0);
    CHECK(memcmp(h->param[6].x, g->param[6].x, 40) == 0);
    nn_graph_free(g);
    nn_graph_free(h);
}

static void a_model_file_gives_back_every_bit(void)
{
    err e = { 0 };
    nn_graph *g = small_net(&e);
    random_params(g, 11);
    g->param[0].x[0] = NAN;
    g->param[0].x[1] = -0.0f;
    g->param[0].x[2] = 1e-42f;
    CHECK_OK(nn_model_save(g, in_dir("m.safetensors"), &(nn_meta){ "epoch", "7" }, 1, &e), e);
    nn_graph *h = nn_model_load(in_dir("m.safetensors"), &e);
    CHECK_OK(h, e);
    char *a = text_of(g), *b = h ? text_of(h) : NULL;
    CHECK_TEXT(b, a);
    for (int i = 0; h && i < g->n_param; i++)
        CHECK(memcmp(g->param[i].x, h->param[i].x,
                     (size_t)nn_param_count(&g->param[i]) * sizeof(float)) == 0);
    tensor_file f;
    CHECK_OK(tensor_file_open(&f, in_dir("m.safetensors"), &e), e);
    CHECK_TEXT(tensor_file_meta(&f, "epoch"), "7");
    CHECK_TEXT(tensor_file_meta(&f, "arch"), g->arch);
    CHECK_TEXT(tensor_file_meta(&f, "barrier"), "stride_1x1");
    CHECK_TEXT(tensor_file_meta(&f, "prep"), g->prep);
    tensor_file_close(&f);
    mem_free(a);
    mem_free(b);
    nn_graph_free(g);
    nn_graph_free(h);
}

/* Save g's tensors with the text of another graph. */
static void save_with_text(const nn_graph *g, const char *text, int drop, const char *path)
{
    err e = { 0 };
    tf_tensor t[64];
    int n = 0;
    for (int i = 0; i < g->n_param; i++) {
        const nn_param *p = &g->param[i];
        if (i == drop)
            continue;
        t[n] = (tf_tensor){ .name = (char *)(size_t)p->name,
                             .dtype = DT_F32,
                             .rank = p->rank,
                             .data = (const char *)p->x };
        int64_t step = 1;
        for (int d = p->rank - 1; d >= 0; step *= p->dim[d], d--) {
            t[n].dim[d] = p->dim[d];
            t[n].stride[d] = step;
        }
        n++;
    }
    CHECK_OK(safetensors_write(path, t, n, &(text_pair){ "graph", text }, 1, &e), e);
}

static void a_model_file_that_does_not_fit_its_graph_is_refused(void)
{
    err e = { 0 };
    nn_graph *g = small_net(&e);
    char *text = text_of(g);
    const char *path = in_dir("bad.safetensors");
    save_with_text(g, text, 2, path);
    CHECK(!nn_model_load(path, &e) && e.code == ERR_DATA && strstr(e.msg, g->param[2].name) &&
          strstr(e.msg, "bad.safetensors"));
    char *fc = strstr(text, "fc = linear(drop) out=4");
    CHECK(fc);
    fc[strlen("fc = linear(drop) out=")] = '5';
    save_with_text(g, text, -1, path);
    CHECK(!nn_model_load(path, &e) && e.code == ERR_DATA && strstr(e.msg, "tensor fc.weight is 4x"));
    CHECK(strstr(e.msg, ", wants 5x"));
    fc[0] = 0;                                   /* no fc any more: its tensors are left over */
    char *output = strstr(text, " output=fc");
    memset(output, ' ', strlen(" output=fc"));
    save_with_text(g, text, -1, path);
    CHECK(!nn_model_load(path, &e) && e.code == ERR_DATA);
    save_with_text(g, "graph\nx = relu(y)\n", -1, path);
    CHECK(!nn_model_load(path, &e) && e.code == ERR_DATA && strstr(e.msg, "line 2"));
    CHECK(!nn_model_load(in_dir("absent.safetensors"), &e) && e.code == ERR_NOINPUT);
    mem_free(text);
    nn_graph_free(g);
}

/* Fail the k-th allocation, for every k: an error each time, and nothing leaks. */
static void running_out_of_memory_is_an_error_everywhere(void)
{
    err e = { 0 };
    nn_graph *g = small_net(&e);
    nn_graph *l = nn_graph_with_loss(g, 0, 0, 0, &e);
    char *text = text_of(l);
    int failed = 0;
    for (int64_t k = 1; k < 2000; k++) {
        e.code = ERR_NONE;
        mem_fail_at(k);
        nn_graph *h = nn_graph_parse(text, &e);
        nn_plan *p = h ? nn_plan_new(h, NN_TRAIN, 2, &e) : NULL;
        mem_fail_at(0);
        nn_plan_free(p);
        nn_graph_free(h);
        if (p)
            break;
        CHECK(e.code == ERR_NOMEM);
        failed++;
    }
    CHECK(failed > 20 && failed < 1999);
    mem_free(text);
    nn_graph_free(g);
    nn_graph_free(l);
}

int main(void)
{
    START(0);
    make_dir();
    RUN(the_text_form_round_trips);
    RUN(garbage_is_refused_with_its_line);
    RUN(damaged_text_never_does_harm);
    RUN(shapes_that_do_not_fit_name_the_node_and_both_numbers);
    RUN(prune_drops_what_the_output_does_not_need);
    RUN(a_graph_changed_by_hand_is_checked);
    RUN(macs_and_weights_are_counted);
    RUN(initialisation_is_hes_and_repeats);
    RUN(a_model_file_gives_back_every_bit);
    RUN(a_model_file_that_does_not_fit_its_graph_is_refused);
    RUN(running_out_of_memory_is_an_error_everywhere);
    remove_dir();
    core_stop();
    END();
}
