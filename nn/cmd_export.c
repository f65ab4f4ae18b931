/* layermerge export: a network for the rest of the world, as ONNX or as plain tensors. */
#include "core/cli.h"
#include "nn/nn.h"

#include <stdio.h>
#include <string.h>

typedef struct { const char *model, *onnx, *safetensors, *input; int64_t classes; double width; } export_options;

static const cli_option options[] = {
    { "model", CLI_TEXT, offsetof(export_options, model), NULL, NULL, "builder or file (or the word without dashes)" },
    { "onnx", CLI_TEXT, offsetof(export_options, onnx), NULL, NULL, "write an ONNX model, for any batch size" },
    { "safetensors", CLI_TEXT, offsetof(export_options, safetensors), NULL, NULL,
      "write the tensors alone, named as torchvision's" },
    CLI_BUILDER(export_options),
};

/* What a model file says besides the network itself: labels, and where it comes from. */
enum { NOTES = 32 };
typedef struct { nn_meta row[NOTES]; int n; tensor_file file; bool open; } notes;

static bool read_notes(notes *x, const char *model, err *e)
{
    static const char *const network[] = { "format", "graph", "arch", "barrier", "prep" };
    *x = (notes){ 0 };
    if (nn_model_find(model))
        return true;
    if (!tensor_file_open(&x->file, model, e))
        return false;
    x->open = true;
    for (int i = 0; i < x->file.n_meta && x->n < NOTES; i++) {
        bool known = strlen(x->file.meta_key[i]) >= sizeof x->row->key;
        for (int k = 0; k < CLI_COUNT(network); k++)
            known = known || !strcmp(x->file.meta_key[i], network[k]);
        if (known)
            continue;
        snprintf(x->row[x->n].key, sizeof x->row->key, "%s", x->file.meta_key[i]);
        x->row[x->n++].value = x->file.meta_value[i];
    }
    return true;
}

static bool write_onnx(const nn_graph *g, const export_options *o, const char *model, err *e)
{
    notes x;
    buf out = { 0 };
    bool ok = read_notes(&x, model, e) && nn_onnx_print(g, x.row, x.n, &out, e) &&
              file_write(o->onnx, out.data, out.len, e);
    buf_free(&out);
    if (x.open)
        tensor_file_close(&x.file);
    return ok;
}

static void report(const nn_graph *g, const export_options *o, bool as_json)
{
    if (!as_json) {
        if (o->onnx)
            printf("%s: %s as ONNX, opset %d\n", o->onnx, g->arch, NN_ONNX_OPSET);
        if (o->safetensors)
            printf("%s: %s, %d tensors\n", o->safetensors, g->arch, g->n_param);
        return;
    }
    buf text = { 0 };
    json_writer w = json_writer_on(&text, false);
    json_begin(&w, NULL, '{');
    json_text(&w, "arch", g->arch);
    json_text(&w, "onnx", o->onnx);
    if (o->onnx)
        json_int(&w, "opset", NN_ONNX_OPSET);
    json_text(&w, "safetensors", o->safetensors);
    json_int(&w, "tensors", g->n_param);
    json_int(&w, "params", nn_graph_weights(g));
    json_end(&w, '}');
    printf("%s\n", text.data ? text.data : "");
    buf_free(&text);
}

static bool run(const cli_common *c, const void *opt, int n_word, char **word, err *e)
{
    const export_options *o = opt;
    if (n_word + !!o->model != 1)
        return err_set(e, ERR_USAGE, "export wants one model: a builder or a file");
    if (!o->onnx && !o->safetensors)
        return err_set(e, ERR_USAGE, "export wants --onnx FILE, --safetensors FILE or both");
    const char *model = o->model ? o->model : word[0], *file = nn_model_find(model) ? NULL : model;
    if (!file_differ("--onnx", o->onnx, "--safetensors", o->safetensors, e) ||
        !file_differ("--onnx", o->onnx, "the model", file, e) ||
        !file_differ("--safetensors", o->safetensors, "the model", file, e))
        return false;
    nn_build b = { .classes = (int)o->classes, .width = o->width };
    nn_graph *g = nn_build_input(&b, o->input, e) ? nn_model_open(model, &b, (uint64_t)c->seed, e) : NULL;
    bool ok = g && (!o->onnx || file_may_write(o->onnx, e)) &&
              (!o->safetensors || nn_weights_save(g, o->safetensors, e)) &&
              (!o->onnx || write_onnx(g, o, model, e));
    if (ok)
        report(g, o, c->json);
    nn_graph_free(g);
    return ok;
}

const cli_verb cmd_export = {
    "export", "write a network as ONNX, or its tensors as a plain state dict",
    options, CLI_COUNT(options), sizeof(export_options), "MODEL: builder or file", run,
};
