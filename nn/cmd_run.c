/* layermerge run: raw tensors through a network, in PyTorch's layout at both ends. */
#include "core/cli.h"
#include "nn/nn.h"

#include <stdio.h>
#include <string.h>

typedef struct { const char *model, *input, *output; int64_t batch, classes; double width; } run_options;

static const cli_option options[] = {
    { "model", CLI_TEXT, offsetof(run_options, model), NULL, NULL, "builder or file (or the word without dashes)" },
    { "width", CLI_NUMBER, offsetof(run_options, width), NULL, "0:20", "width multiplier of a builder; 0: its own" },
    { "classes", CLI_INT, offsetof(run_options, classes), NULL, "0:1000000", "outputs of a builder (default: its own)" },
    { "input", CLI_TEXT, offsetof(run_options, input), "!", NULL, "safetensors with x (N,C,H,W), normalised" },
    { "output", CLI_TEXT, offsetof(run_options, output), "!", NULL, "safetensors to write, with y" },
    { "batch", CLI_INT, offsetof(run_options, batch), "32", "1:4096", "images at a time" },
};

static bool check_input(const tensor_file *f, const tf_tensor *x, const nn_graph *g, err *e)
{
    if (!x)
        return err_set(e, ERR_DATA, "%s: there is no tensor x", f->path);
    if (x->dtype != DT_F32)
        return err_set(e, ERR_DATA, "%s: x is %s, wanted F32", f->path, tf_dtype_names[x->dtype]);
    if (x->rank != 4 || x->dim[0] < 1)
        return err_set(e, ERR_DATA, "%s: x has %d dimensions and %lld values, wanted N,C,H,W", f->path, x->rank,
                       (long long)tf_count(x));
    const nn_node *in = nn_only_input(g);
    if (!in)
        return err_set(e, ERR_CONFIG, "%s: the network does not have exactly one input", g->arch);
    const int64_t *d = x->dim, *want = in->dim;
    if (d[1] != want[3] || d[2] != want[1] || d[3] != want[2])
        return err_set(e, ERR_CONFIG, "%s: x holds images of %lldx%lldx%lld (C,H,W), the network takes %lldx%lldx%lld",
                       f->path, (long long)d[1], (long long)d[2], (long long)d[3],
                       (long long)want[3], (long long)want[1], (long long)want[2]);
    return true;
}

/* x (n,C,H,W) → y (n,C,H,W), a batch at a time; the places behind the last image keep old values,
 * which no other image sees. */
static void forward(nn_plan *p, const int64_t *in, const int64_t *out, int64_t n, const float *x, float *y)
{
    int64_t size_in = in[1] * in[2] * in[3], size_out = out[1] * out[2] * out[3], batch = nn_plan_batch(p);
    for (int64_t at = 0; at < n && !stop_requested(); at += batch) {
        int64_t some = n - at < batch ? n - at : batch;
        nchw_to_nhwc(x + at * size_in, some, in[3], in[1], in[2], nn_plan_input(p, 0));
        nn_plan_forward(p);
        nhwc_to_nchw(nn_plan_output(p), some, out[1], out[2], out[3], y + at * size_out);
    }
}

static bool save(const char *path, const nn_graph *g, int64_t n, const float *y, err *e)
{
    const int64_t *d = g->node[g->output].dim;
    tf_tensor t = { .name = "y", .dtype = DT_F32, .rank = d[1] == 1 && d[2] == 1 ? 2 : 4,
                    .dim = { n, d[3], d[1], d[2] }, .data = (const char *)y };
    t.stride[t.rank - 1] = 1;
    for (int i = t.rank - 2; i >= 0; i--)
        t.stride[i] = t.stride[i + 1] * t.dim[i + 1];
    return safetensors_write(path, &t, 1, NULL, 0, e);
}

static bool compute(nn_graph *g, const run_options *o, int64_t *n, err *e)
{
    tensor_file f;
    if (!tensor_file_open(&f, o->input, e))
        return false;
    const tf_tensor *t = tensor_file_find(&f, "x");
    nn_plan *p = NULL;
    float *x = NULL, *y = NULL;
    bool ok = check_input(&f, t, g, e);
    if (ok) {
        *n = t->dim[0];
        p = nn_plan_new(g, NN_INFER, (int)(*n < o->batch ? *n : o->batch), e);
        const int64_t *out = g->node[g->output].dim;
        x = mem_new((size_t)tf_count(t), sizeof *x, e);
        y = mem_new((size_t)*n, (size_t)(out[1] * out[2] * out[3]) * sizeof *y, e);
        ok = p && x && y && tf_read_f32(t, x, e);
        if (ok)
            forward(p, nn_only_input(g)->dim, out, *n, x, y);
        if (ok && stop_requested())
            ok = err_set(e, ERR_STOPPED, "stopped before the last image, nothing was written");
        ok = ok && save(o->output, g, *n, y, e);
    }
    nn_plan_free(p);
    mem_free(x);
    mem_free(y);
    tensor_file_close(&f);
    return ok;
}

static bool run(const cli_common *c, const void *opt, int n_word, char **word, err *e)
{
    const run_options *o = opt;
    if (n_word + !!o->model != 1)
        return err_set(e, ERR_USAGE, "run wants one model: a builder or a file");
    const char *model = o->model ? o->model : word[0], *file = nn_model_find(model) ? NULL : model;
    if (!file_differ("--output", o->output, "--input", o->input, e) ||
        !file_differ("--output", o->output, "the model", file, e))
        return false;
    const nn_build b = { .classes = (int)o->classes, .width = o->width };
    nn_graph *g = nn_model_open(model, &b, (uint64_t)c->seed, e);
    if (!g)
        return false;
    int64_t n = 0;
    bool ok = compute(g, o, &n, e);
    const int64_t *d = g->node[g->output].dim;
    if (ok && c->json)
        printf("{\"n\":%lld,\"channels\":%lld,\"h\":%lld,\"w\":%lld}\n", (long long)n, (long long)d[3],
               (long long)d[1], (long long)d[2]);
    else if (ok)
        printf("%s: y is %lld x %lld\n", o->output, (long long)n, (long long)(d[1] * d[2] * d[3]));
    nn_graph_free(g);
    return ok;
}

const cli_verb cmd_run = {
    "run", "run a network on raw tensors (x → y)",
    options, CLI_COUNT(options), sizeof(run_options), "MODEL: builder or file", run,
};
