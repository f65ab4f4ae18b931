/* layermerge import: published weights → a model file of ours. */
#include "core/cli.h"
#include "nn/nn.h"

#include <stdio.h>
#include <string.h>

typedef struct { const char *weights, *arch, *input, *out; int64_t classes; double width; } import_options;

static const cli_option options[] = {
    { "weights", CLI_TEXT, offsetof(import_options, weights), "!", NULL, ".pth, .pt, .th or .safetensors" },
    { "arch", CLI_TEXT, offsetof(import_options, arch), "!", NULL, "builder whose weights these are" },
    CLI_BUILDER(import_options),
    { "out", CLI_TEXT, offsetof(import_options, out), "!", NULL, "model file to write" },
};

static nn_graph *build(const import_options *o, err *e)
{
    const nn_model *m = nn_model_find(o->arch);
    if (!m) {
        buf names = { 0 };
        for (const nn_model *const *p = nn_models; *p; p++)
            buf_printf(&names, " %s", (*p)->name);
        err_set(e, ERR_USAGE, "--arch %s is not a builder; there are%s", o->arch, names.data ? names.data : "");
        buf_free(&names);
        return NULL;
    }
    nn_build b = { .classes = (int)o->classes, .width = o->width };
    return nn_build_input(&b, o->input, e) ? m->build(&b, e) : NULL;
}

static void report(const nn_graph *g, const import_options *o, bool as_json)
{
    if (!as_json) {
        printf("%s: %s, %d tensors, %.2f M parameters, %.1f M multiply-adds\n", o->out, g->arch, g->n_param,
               (double)nn_graph_weights(g) / 1e6, (double)nn_graph_macs(g) / 1e6);
        return;
    }
    buf text = { 0 };
    json_writer w = json_writer_on(&text, false);
    json_begin(&w, NULL, '{');
    json_text(&w, "out", o->out);
    json_text(&w, "arch", g->arch);
    json_int(&w, "tensors", g->n_param);
    json_int(&w, "params", nn_graph_weights(g));
    json_int(&w, "macs", nn_graph_macs(g));
    json_end(&w, '}');
    printf("%s\n", text.data ? text.data : "");
    buf_free(&text);
}

static bool run(const cli_common *c, const void *opt, int n_word, char **word, err *e)
{
    (void)n_word, (void)word;
    const import_options *o = opt;
    const char *slash = strrchr(o->weights, '/');
    char sum[65];
    nn_meta meta[] = { { "source", slash ? slash + 1 : o->weights }, { "source_sha256", sum } };
    nn_graph *g = file_differ("--out", o->out, "--weights", o->weights, e) ? build(o, e) : NULL;
    bool ok = g && nn_import(g, o->weights, e) && file_sha256(o->weights, sum, e) &&
              nn_model_save(g, o->out, meta, CLI_COUNT(meta), e);
    if (ok)
        report(g, o, c->json);
    nn_graph_free(g);
    return ok;
}

const cli_verb cmd_import = {
    "import", "turn published weights (.pth, .th, .safetensors) into a model file",
    options, CLI_COUNT(options), sizeof(import_options), NULL, run,
};
