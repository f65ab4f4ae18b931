/* ONNX files: their bytes read back by a reader of a few lines, and their numbers by ONNX Runtime
 * where there is one (onnxruntime-node; build/peers and NODE_PATH are looked in). */
#include "tests/chain_random.h"
#include "tests/test.h"

#include <stdlib.h>
#include <unistd.h>

/* ---- reading back ------------------------------------------------------------------------------ */

typedef struct { const uint8_t *p, *end; } span;

static uint64_t varint(span *s)
{
    uint64_t v = 0;
    for (int shift = 0; s->p < s->end && shift < 70; shift += 7) {
        const uint8_t b = *s->p++;
        v |= (uint64_t)(b & 0x7f) << shift;
        if (!(b & 0x80))
            return v;
    }
    CHECK(!"a whole varint");
    return 0;
}

/* The next field of a message: its number, 0 at the end; its content or its value. */
static int next(span *s, span *content, uint64_t *value)
{
    if (s->p >= s->end)
        return 0;
    const uint64_t tag = varint(s);
    *value = 0;
    *content = (span){ s->p, s->p };
    if ((tag & 7) == 0)
        *value = varint(s);
    else {
        const uint64_t len = (tag & 7) == 2 ? varint(s) : 4;
        CHECK(((tag & 7) == 2 || (tag & 7) == 5) && len <= (uint64_t)(s->end - s->p));
        if (len > (uint64_t)(s->end - s->p))
            return s->p = s->end, 0;
        *content = (span){ s->p, s->p + len };
        s->p += len;
    }
    return (int)(tag >> 3);
}

/* The i-th field of that number: content, or value in *v. An empty span if there is none. */
static span field(span in, int number, int i, uint64_t *v)
{
    span s = in, content;
    uint64_t value;
    for (int f; (f = next(&s, &content, &value)) != 0;)
        if (f == number && i-- == 0) {
            if (v)
                *v = value;
            return content;
        }
    return (span){ in.end, in.end };
}

static int fields(span in, int number)
{
    int n = 0;
    span content;
    uint64_t value;
    for (int f; (f = next(&in, &content, &value)) != 0;)
        n += f == number;
    return n;
}

static bool is_text(span s, const char *text)
{
    return (size_t)(s.end - s.p) == strlen(text) && !memcmp(s.p, text, strlen(text));
}

static bool same_span(span a, span b) { return a.end - a.p == b.end - b.p && !memcmp(a.p, b.p, (size_t)(a.end - a.p)); }

/* A message among the fields of that number whose name is called so. */
static span named(span in, int number, int name_field, const char *called)
{
    for (int i = 0; i < fields(in, number); i++) {
        span m = field(in, number, i, NULL);
        if (is_text(field(m, name_field, 0, NULL), called))
            return m;
    }
    return (span){ in.end, in.end };
}

/* As onnx.proto numbers them. */
static span graph_of(span model) { return field(model, 7, 0, NULL); }
static span node_of(span model, const char *called) { return named(graph_of(model), 1, 3, called); }
static span tensor_of(span model, const char *called) { return named(graph_of(model), 5, 8, called); }
static span attr_of(span node, const char *called) { return named(node, 5, 1, called); }
static bool node_is(span model, const char *called, const char *op)
{
    return is_text(field(node_of(model, called), 4, 0, NULL), op);
}

static bool reads(span model, const char *node, int k, const char *value)
{
    return is_text(field(node_of(model, node), 1, k, NULL), value);
}

static bool ints_are(span model, const char *node, const char *attr, int n, const int64_t *want)
{
    span a = attr_of(node_of(model, node), attr);
    bool same = fields(a, 8) == n;
    for (int i = 0; same && i < n; i++) {
        uint64_t v = 0;
        field(a, 8, i, &v);
        same = (int64_t)v == want[i];
    }
    return same;
}

static int64_t int_of(span model, const char *node, const char *attr)
{
    uint64_t v = UINT64_MAX;
    field(attr_of(node_of(model, node), attr), 3, 0, &v);
    return (int64_t)v;
}

/* Integers of a constant tensor. */
static bool constant_is(span model, const char *called, int n, const int64_t *want)
{
    span raw = field(tensor_of(model, called), 9, 0, NULL);
    return raw.end - raw.p == n * 8 && !memcmp(raw.p, want, (size_t)n * 8);
}

static bool meta_is(span model, const char *key, const char *value)
{
    return is_text(field(named(model, 14, 1, key), 2, 0, NULL), value);
}

#define INTS(...) (int)(sizeof((int64_t[]){ __VA_ARGS__ }) / 8), (int64_t[]){ __VA_ARGS__ }

static span print(const nn_graph *g, buf *out)
{
    err e = { 0 };
    CHECK_OK(nn_onnx_print(g, NULL, 0, out, &e), e);
    const uint8_t *p = (const uint8_t *)out->data;
    return (span){ p, p + out->len };
}

static span print_text(const char *text, nn_graph **g, buf *out)
{
    err e = { 0 };
    *g = nn_graph_parse(text, &e);
    CHECK_OK(*g, e);
    return *g ? print(*g, out) : (span){ 0 };
}

/* ---- what a file says ---------------------------------------------------------------------------- */

static void convolutions_keep_their_geometry(void)
{
    nn_graph *g;
    buf out = { 0 };
    span m = print_text("graph arch=\"t\" output=c\nx = input() size=9,8,4\n"
                        "c = conv2d(x) out=6 k=3,2 stride=2,1 pad=1,2,3,4 dilation=1,2 groups=2 bias=1\n", &g, &out);
    CHECK(node_is(m, "c", "Conv"));
    CHECK(ints_are(m, "c", "kernel_shape", INTS(3, 2)) && ints_are(m, "c", "strides", INTS(2, 1)));
    CHECK(ints_are(m, "c", "dilations", INTS(1, 2)) && int_of(m, "c", "group") == 2);
    CHECK(ints_are(m, "c", "pads", INTS(1, 3, 2, 4)));       /* top, left, bottom, right */
    CHECK(reads(m, "c", 0, "x") && reads(m, "c", 1, "c.weight") && reads(m, "c", 2, "c.bias"));
    buf_free(&out);
    nn_graph_free(g);
}

static void every_op_has_its_onnx_name(void)
{
    nn_graph *g;
    buf out = { 0 };
    span m = print_text("graph arch=\"t\" output=fc\nx = input() size=12,12,3\n"
                        "bn = batchnorm(x) eps=0.001\nr = relu(bn)\n"
                        "r6 = relu6(x)\nsum = add(r, r6)\npad = pad(sum) pad=1,-2,-3,4\n"
                        "mp = maxpool(pad) k=2,3 stride=2,1 pad=1,0,1,1\nap = avgpool(mp) k=2,2 pad=1,0,0,1\n"
                        "s = slice(ap) stride=2,1 chan=1,2\nboth = concat(s, s)\ngp = globalpool(both)\n"
                        "d = dropout(gp) p=0.5\nfc = linear(d) out=5 bias=1\n", &g, &out);
    static const struct { const char *name, *op; } want[] = {
        { "bn", "BatchNormalization" }, { "r", "Relu" }, { "r6", "Clip" }, { "sum", "Add" }, { "pad", "Pad" },
        { "mp", "MaxPool" }, { "ap", "AveragePool" }, { "s#slice", "Slice" }, { "s", "Pad" }, { "both", "Concat" },
        { "gp", "GlobalAveragePool" }, { "d", "Dropout" }, { "fc#flat", "Flatten" }, { "fc", "Gemm" },
    };
    for (size_t i = 0; i < sizeof want / sizeof *want; i++)
        CHECK(node_is(m, want[i].name, want[i].op));
    CHECK(fields(graph_of(m), 1) == sizeof want / sizeof *want);
    float epsilon = 0;
    span a = field(attr_of(node_of(m, "bn"), "epsilon"), 2, 0, NULL);
    memcpy(&epsilon, a.p, sizeof epsilon);
    CHECK_CLOSE(epsilon, 0.001, 1e-9);
    CHECK(reads(m, "bn", 3, "bn.running_mean") && reads(m, "bn", 4, "bn.running_var"));
    CHECK(constant_is(m, "pad#pads", INTS(0, 0, 1, -3, 0, 0, -2, 4)));
    CHECK(ints_are(m, "mp", "pads", INTS(1, 1, 0, 1)) && ints_are(m, "mp", "kernel_shape", INTS(2, 3)));
    CHECK(int_of(m, "ap", "count_include_pad") == 0);
    CHECK(constant_is(m, "s#steps", INTS(2, 1)) && constant_is(m, "s#axes", INTS(2, 3)));
    CHECK(constant_is(m, "s#pads", INTS(0, 1, 0, 0, 0, 2, 0, 0)));
    CHECK(int_of(m, "both", "axis") == 1 && int_of(m, "fc", "transB") == 1);
    buf_free(&out);
    nn_graph_free(g);
}

/* Input and output: any batch, the other sizes fixed. */
static bool shape_is(span value, int n, const int64_t *want)
{
    span shape = field(field(field(value, 2, 0, NULL), 1, 0, NULL), 2, 0, NULL);
    bool same = fields(shape, 1) == n + 1 && is_text(field(field(shape, 1, 0, NULL), 2, 0, NULL), "N");
    for (int i = 0; same && i < n; i++) {
        uint64_t v = 0;
        field(field(shape, 1, i + 1, NULL), 1, 0, &v);
        same = (int64_t)v == want[i];
    }
    return same;
}

static void a_model_says_its_batch_is_open_and_how_images_are_prepared(void)
{
    err e = { 0 };
    nn_graph *g = nn_model_find("resnet20")->build(&(nn_build){ .classes = 7, .h = 24, .w = 16, .c = 3 }, &e);
    buf out = { 0 };
    CHECK_OK(nn_onnx_print(g, &(nn_meta){ "labels", "a\nb" }, 1, &out, &e), e);
    const uint8_t *p = (const uint8_t *)out.data;
    span m = { p, p + out.len };
    uint64_t opset = 0;
    field(field(m, 8, 0, NULL), 2, 0, &opset);
    CHECK(opset == 13);
    CHECK(shape_is(named(graph_of(m), 11, 1, "input"), INTS(3, 24, 16)));
    CHECK(shape_is(named(graph_of(m), 12, 1, "linear"), INTS(7)));
    CHECK(meta_is(m, "arch", "resnet20") && meta_is(m, "size", "24,16,3") && meta_is(m, "resize", "0"));
    CHECK(meta_is(m, "mean", "0.485,0.456,0.406") && meta_is(m, "std", "0.229,0.224,0.225"));
    CHECK(meta_is(m, "labels", "a\nb"));
    buf_free(&out);
    nn_graph_free(g);
}

static void tensors_keep_names_shapes_and_bits(void)
{
    err e = { 0 };
    const nn_build small = { .classes = 3, .h = 32, .w = 32, .c = 3, .width = 0.25 };
    nn_graph *g = nn_model_find("mobilenetv2")->build(&small, &e);
    random_values(g);
    buf out = { 0 };
    span m = print(g, &out);
    for (int i = 0; i < g->n_param; i++) {
        const nn_param *w = &g->param[i];
        span t = tensor_of(m, w->name), raw = field(t, 9, 0, NULL);
        bool same = fields(t, 1) == w->rank && raw.end - raw.p == nn_param_count(w) * 4
                 && !memcmp(raw.p, w->x, (size_t)(raw.end - raw.p));
        for (int d = 0; same && d < w->rank; d++) {
            uint64_t v = 0;
            field(t, 1, d, &v);
            same = (int64_t)v == w->dim[d];
        }
        CHECK(same);
    }
    buf_free(&out);
    nn_graph_free(g);
}

/* Names differ, and a node reads what an earlier one, an input or a constant has made. */
static bool is_sound(span m)
{
    span g = graph_of(m);
    const int nodes = fields(g, 1), tensors = fields(g, 5), inputs = fields(g, 11), all = tensors + inputs + nodes;
    span *made = mem_new((size_t)all, sizeof *made, NULL);
    int n = 0;
    for (int i = 0; i < tensors; i++)
        made[n++] = field(field(g, 5, i, NULL), 8, 0, NULL);
    for (int i = 0; i < inputs; i++)
        made[n++] = field(field(g, 11, i, NULL), 1, 0, NULL);
    bool ok = nodes > 0 && inputs == 1;
    for (int i = 0; ok && i < nodes; i++) {
        span node = field(g, 1, i, NULL);
        for (int k = 0; ok && k < fields(node, 1); k++) {
            bool found = false;
            for (int o = 0; !found && o < n; o++)
                found = same_span(made[o], field(node, 1, k, NULL));
            ok = found;
        }
        made[n++] = field(node, 2, 0, NULL);
        ok = ok && same_span(made[n - 1], field(node, 3, 0, NULL));
    }
    for (int i = 0; ok && i < n; i++)
        for (int o = 0; ok && o < i; o++)
            ok = !same_span(made[i], made[o]);
    mem_free(made);
    return ok;
}

static void check_sound(const nn_graph *g)
{
    buf out = { 0 };
    CHECK(is_sound(print(g, &out)));
    buf_free(&out);
}

/* Two networks made from g by a random solution; the caller frees them. */
static void prune_and_merge(const nn_graph *g, int keep_percent, nn_graph **pruned, nn_graph **merged)
{
    err e = { 0 };
    search_chain *c = search_chain_new(g, &e);
    CHECK_OK(c, e);
    search_solution s = random_solution(c, keep_percent, chance(50));
    *pruned = search_prune(c, &s, &e);
    *merged = *pruned ? search_merge(c, &s, *pruned, &e) : NULL;
    CHECK_OK(*merged, e);
    search_solution_free(&s);
    search_chain_free(c);
}

static void random_networks_pruned_and_merged_are_sound(void)
{
    for (int t = 0; t < 60; t++) {
        err e = { 0 };
        nn_graph *g = graph_of_random_size(9, 19, &e), *pruned, *merged;
        CHECK_OK(g, e);
        prune_and_merge(g, 40, &pruned, &merged);
        check_sound(g);
        check_sound(pruned);
        check_sound(merged);
        nn_graph_free(g);
        nn_graph_free(pruned);
        nn_graph_free(merged);
    }
}

static void rows_of_features_become_images_where_those_are_wanted(void)
{
    nn_graph *g;
    buf out = { 0 };
    span m = print_text("graph arch=\"t\" output=end\nx = input() size=4,4,3\nfc = linear(x) out=6\nr = relu(fc)\n"
                        "gp = globalpool(x)\nc = conv2d(r) out=3\nb = add(gp, c)\n"
                        "both = concat(r, b)\nend = linear(both) out=2\n",
                        &g, &out);
    CHECK(is_sound(m));
    CHECK(node_is(m, "r#map", "Unsqueeze") && reads(m, "c", 0, "r#map") && reads(m, "both", 0, "r#map"));
    CHECK(reads(m, "r", 0, "fc") && reads(m, "end", 0, "end#flat") && reads(m, "end#flat", 0, "both"));
    buf_free(&out);
    nn_graph_free(g);
}

static bool refuses(const char *text, const char *words)
{
    err e = { 0 };
    buf out = { 0 };
    nn_graph *g = nn_graph_parse(text, &e);
    CHECK_OK(g, e);
    bool refused = g && !nn_onnx_print(g, NULL, 0, &out, &e) && e.code == ERR_CONFIG && strstr(e.msg, words);
    if (!refused)
        fprintf(stderr, "%s\n", e.msg);
    buf_free(&out);
    nn_graph_free(g);
    return refused;
}

static void what_onnx_cannot_say_is_refused_by_name(void)
{
    CHECK(refuses("graph arch=\"t\" output=fc\nx = input() size=1,1,3\nfc = linear(x) out=2\n"
                  "t = input() size=1,1,2\nloss = softmax_xent(fc, t)\n", "loss: ONNX has no softmax_xent"));
    CHECK(refuses("graph arch=\"t\" output=c.weight\nx = input() size=4,4,3\nc = conv2d(x) out=2\nc.weight = relu(c)\n",
                  "both called c.weight"));
}

/* ---- ONNX Runtime ---------------------------------------------------------------------------------- */

enum { BATCH = 4 };

static bool put(const char *called, const char *suffix, const void *data, size_t size)
{
    char path[512];
    snprintf(path, sizeof path, "%s/%s%s", temp_dir, called, suffix);
    FILE *f = fopen(path, "ab");
    bool ok = f && fwrite(data, 1, size, f) == size;
    return (f && !fclose(f)) && ok;
}

/* Model and images for onnx_run.js; y (BATCH, C, H, W), which is ours, to be mem_freed. */
static float *leave(nn_graph *g, const char *called)
{
    err e = { 0 };
    buf out = { 0 };
    char line[160];
    const int64_t *in = g->node[0].dim, *to = g->node[g->output].dim;
    const int64_t size = BATCH * in[1] * in[2] * in[3];
    nn_plan *p = nn_plan_new(g, NN_INFER, BATCH, &e);
    CHECK_OK(p, e);
    float *x = mem_new((size_t)size, sizeof *x, &e);
    float *y = mem_new((size_t)(BATCH * to[1] * to[2] * to[3]), sizeof *y, &e);
    if (p && x && y) {
        for (int64_t i = 0; i < size; i++)
            x[i] = (float)rng_normal(&dice);
        nchw_to_nhwc(x, BATCH, in[3], in[1], in[2], nn_plan_input(p, 0));
        nn_plan_forward(p);
        nhwc_to_nchw(nn_plan_output(p), BATCH, to[1], to[2], to[3], y);
        snprintf(line, sizeof line, "%s %lld %lld %lld %d\n", called, (long long)in[3], (long long)in[1],
                 (long long)in[2], BATCH);
        print(g, &out);
        CHECK(put(called, ".onnx", out.data, out.len) && put(called, ".x", x, (size_t)size * sizeof *x));
        CHECK(put("list", "", line, strlen(line)));
    }
    buf_free(&out);
    mem_free(x);
    nn_plan_free(p);
    return y;
}

/* The largest difference, relative to the largest output; infinite if the file is not as long as it should be. */
static double difference(const char *called, const char *suffix, const float *y, int64_t n)
{
    err e = { 0 };
    char path[512];
    buf b = { 0 };
    double worst = 0, size = 0;
    snprintf(path, sizeof path, "%s/%s%s", temp_dir, called, suffix);
    if (!file_read(path, &b, &e) || b.len != (size_t)n * sizeof *y)
        worst = HUGE_VAL;
    for (int64_t i = 0; worst < HUGE_VAL && i < n; i++) {
        float theirs;
        memcpy(&theirs, b.data + i * 4, sizeof theirs);
        double d = fabs((double)theirs - (double)y[i]);
        worst = d > worst || d != d ? d : worst;
        size = fmax(size, fabs((double)y[i]));
    }
    buf_free(&b);
    return worst / fmax(size, 1e-30);
}

static bool runtime(const char *arguments)
{
    char command[512];
    snprintf(command, sizeof command, "NODE_PATH=\"$PWD/build/peers/node_modules:$NODE_PATH\" node %s", arguments);
    return system(command) == 0;
}

/* Both batch sizes of all graphs. */
static void compare(nn_graph *const *g, int n)
{
    float **y = mem_new((size_t)n, sizeof *y, NULL);
    char called[64], run[288];
    double worst = 0;
    make_dir();
    for (int i = 0; i < n; i++) {
        snprintf(called, sizeof called, "%.40s-%d", g[i]->arch, i);
        y[i] = leave(g[i], called);
    }
    snprintf(run, sizeof run, "tests/onnx_run.js %s", temp_dir);
    CHECK(runtime(run));
    for (int i = 0; i < n; i++) {
        const int64_t *d = g[i]->node[g[i]->output].dim, one = d[1] * d[2] * d[3];
        snprintf(called, sizeof called, "%.40s-%d", g[i]->arch, i);
        const double all = difference(called, ".y.4", y[i], BATCH * one), first = difference(called, ".y.1", y[i], one);
        if (!(all <= 1e-4 && first <= 1e-4))
            fprintf(stderr, "%s differs by %g at batch 4, %g at batch 1\n", called, all, first);
        CHECK(all <= 1e-4 && first <= 1e-4);
        worst = fmax(worst, fmax(all, first));
        mem_free(y[i]);
    }
    mem_free(y);
    remove_dir();
    printf("%s against ONNX Runtime: %.1e\n", n > 3 ? "random networks" : g[0]->arch, worst);
}

static bool can_run(void) { return runtime("-e \"require('onnxruntime-node')\" 2>/dev/null"); }

static void onnx_runtime_agrees_on_random_networks(void)
{
    enum { ROUNDS = 20 };
    nn_graph *g[3 * ROUNDS];
    err e = { 0 };
    for (int t = 0; t < ROUNDS; t++) {
        g[3 * t] = graph_of_random_size(9, 19, &e);
        CHECK_OK(g[3 * t], e);
        prune_and_merge(g[3 * t], 40, &g[3 * t + 1], &g[3 * t + 2]);
    }
    compare(g, 3 * ROUNDS);
    for (int i = 0; i < 3 * ROUNDS; i++)
        nn_graph_free(g[i]);
}

static void onnx_runtime_agrees_on_every_network_pruned_and_merged(void)
{
    static const struct { const char *model; nn_build build; } all[] = {
        { "resnet20", { .h = 32, .w = 32, .c = 3, .classes = 10 } },
        { "mobilenetv2", { .h = 32, .w = 32, .c = 3, .classes = 7, .width = 1.4 } },
        { "vgg8_bn", { .h = 32, .w = 32, .c = 3, .classes = 10 } },
        { "resnet56", { .h = 16, .w = 24, .c = 1, .classes = 10 } },
        { "resnet18", { .h = 72, .w = 65, .c = 3, .classes = 7 } },
        { "resnet34", { .h = 32, .w = 32, .c = 3, .classes = 7 } },
        { "resnet50", { .h = 66, .w = 66, .c = 3, .classes = 7 } },
        { "mobilenetv2", { .h = 80, .w = 96, .c = 3, .classes = 7, .width = 1 } },
        { "vgg19_bn", { .h = 32, .w = 32, .c = 3, .classes = 7 } },
        { "vgg19_bn", { .h = 224, .w = 224, .c = 3, .classes = 7 } },
    };
    const size_t n = test_few() ? 3 : sizeof all / sizeof *all;
    for (size_t i = 0; i < n; i++) {
        err e = { 0 };
        nn_graph *g[3] = { nn_model_find(all[i].model)->build(&all[i].build, &e) };
        CHECK_OK(g[0], e);
        random_values(g[0]);
        const int forms = all[i].build.h < 224 ? 3 : 1;      /* merged large maps would take minutes */
        if (forms > 1)
            prune_and_merge(g[0], 75, &g[1], &g[2]);
        compare(g, forms);
        for (int k = 0; k < forms; k++)
            nn_graph_free(g[k]);
    }
}

static void skipped_without_onnx_runtime(void) { SKIP("no node with onnxruntime-node"); }

int main(void)
{
    START(2);
    dice = rng_at(11, RNG_TEST, 0, 0);
    RUN(convolutions_keep_their_geometry);
    RUN(every_op_has_its_onnx_name);
    RUN(a_model_says_its_batch_is_open_and_how_images_are_prepared);
    RUN(tensors_keep_names_shapes_and_bits);
    RUN(random_networks_pruned_and_merged_are_sound);
    RUN(rows_of_features_become_images_where_those_are_wanted);
    RUN(what_onnx_cannot_say_is_refused_by_name);
    if (can_run()) {
        RUN(onnx_runtime_agrees_on_random_networks);
        RUN(onnx_runtime_agrees_on_every_network_pruned_and_merged);
    } else
        RUN(skipped_without_onnx_runtime);
    core_stop();
    END();
}
