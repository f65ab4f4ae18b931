/* Published weights into a built graph. Files name their tensors as torchvision does (or akamaster,
 * for the CIFAR ResNets), which are our names, or as timm does, which a table rewrites. */
#include "core/io.h"
#include "nn/op.h"

#include <stdio.h>
#include <string.h>

/* ---- names ----------------------------------------------------------------------------------------- */

/* A leading `from` becomes `to`; a * stands for the same digits in both. The rows of a source are
 * tried in order on what the rows before have made of a name, each at most once. */
typedef struct { const char *from, *to; } rename_row;
typedef struct { const char *source; const rename_row *row; } rename_map;

static const rename_row timm_mobilenetv2[] = {
    { "conv_stem.", "features.0.0." }, { "bn1.", "features.0.1." },
    { "conv_head.", "features.18.0." }, { "bn2.", "features.18.1." },
    { "classifier.", "classifier.1." },
    { "blocks.0.0.", "features.1.conv." },
    { "blocks.1.0.", "features.2.conv." }, { "blocks.1.1.", "features.3.conv." },
    { "blocks.2.0.", "features.4.conv." }, { "blocks.2.1.", "features.5.conv." },
    { "blocks.2.2.", "features.6.conv." },
    { "blocks.3.0.", "features.7.conv." }, { "blocks.3.1.", "features.8.conv." },
    { "blocks.3.2.", "features.9.conv." }, { "blocks.3.3.", "features.10.conv." },
    { "blocks.4.0.", "features.11.conv." }, { "blocks.4.1.", "features.12.conv." },
    { "blocks.4.2.", "features.13.conv." },
    { "blocks.5.0.", "features.14.conv." }, { "blocks.5.1.", "features.15.conv." },
    { "blocks.5.2.", "features.16.conv." },
    { "blocks.6.0.", "features.17.conv." },
    { "features.1.conv.conv_dw.", "features.1.conv.0.0." }, { "features.1.conv.bn1.", "features.1.conv.0.1." },
    { "features.1.conv.conv_pw.", "features.1.conv.1." }, { "features.1.conv.bn2.", "features.1.conv.2." },
    { "features.*.conv.conv_pw.", "features.*.conv.0.0." }, { "features.*.conv.bn1.", "features.*.conv.0.1." },
    { "features.*.conv.conv_dw.", "features.*.conv.1.0." }, { "features.*.conv.bn2.", "features.*.conv.1.1." },
    { "features.*.conv.conv_pwl.", "features.*.conv.2." }, { "features.*.conv.bn3.", "features.*.conv.3." },
    { NULL, NULL },
};

static const rename_row timm_vgg[] = {
    { "pre_logits.fc1.", "classifier.0." }, { "pre_logits.fc2.", "classifier.3." }, { "head.fc.", "classifier.6." },
    { NULL, NULL },
};

static const rename_row same[] = { { NULL, NULL } };

static const rename_map maps[] = {
    { "torchvision", same }, { "timm mobilenetv2", timm_mobilenetv2 }, { "timm vgg", timm_vgg },
};
enum { MAPS = sizeof maps / sizeof *maps, NAME = 256 };

/* Length of the text that `pattern` matches at the start of name, -1 if none; the digits of * go to
 * digit. */
static int match(const char *pattern, const char *name, char digit[12])
{
    const char *at = name;
    for (; *pattern; pattern++) {
        if (*pattern != '*') {
            if (*at++ != *pattern)
                return -1;
            continue;
        }
        size_t n = strspn(at, "0123456789");
        if (!n || n > 11)
            return -1;
        memcpy(digit, at, n);
        digit[n] = 0;
        at += n;
    }
    return (int)(at - name);
}

static void rename_one(const rename_row *row, char name[NAME])
{
    char digit[12] = "", made[NAME];
    int matched = match(row->from, name, digit);
    if (matched < 0)
        return;
    const char *star = strchr(row->to, '*');
    int before = star ? (int)(star - row->to) : (int)strlen(row->to);
    snprintf(made, sizeof made, "%.*s%s%s%s", before, row->to, star ? digit : "", star ? star + 1 : "", name + matched);
    memcpy(name, made, sizeof made);
}

static void our_name(const rename_map *m, const char *theirs, char name[NAME])
{
    static const char parallel[] = "module.";            /* PyTorch's DataParallel puts it in front */
    bool drop = !strncmp(theirs, parallel, sizeof parallel - 1);
    snprintf(name, NAME, "%s", drop ? theirs + sizeof parallel - 1 : theirs);
    for (const rename_row *r = m->row; r->from; r++)
        rename_one(r, name);
}

/* Step counters of batch norm; nothing reads them. */
static bool is_counter(const char *name)
{
    static const char tail[] = "num_batches_tracked";
    size_t n = strlen(name), t = sizeof tail - 1;
    return n >= t && !strcmp(name + n - t, tail);
}

/* ---- comparing file and graph ----------------------------------------------------------------------- */

/* found[p]: the file's tensor for parameter p. Returns how many tensors found their parameter. */
static int pair_up(const nn_graph *g, const tensor_file *f, const rename_map *m, const tf_tensor **found)
{
    int hits = 0;
    memset(found, 0, (size_t)g->n_param * sizeof *found);
    for (int i = 0; i < f->n; i++) {
        char name[NAME];
        our_name(m, f->tensor[i].name, name);
        int p = nn_param_find(g, name);
        if (p >= 0 && !found[p]) {
            found[p] = &f->tensor[i];
            hits++;
        }
    }
    return hits;
}

/* The same dimensions; a linear layer may be stored as the 1×1 or full-map convolution it equals. */
static bool same_shape(const nn_param *p, const tf_tensor *t)
{
    bool same_dims = p->rank == t->rank;
    for (int i = 0; same_dims && i < p->rank; i++)
        same_dims = p->dim[i] == t->dim[i];
    bool as_conv = p->rank == 2 && t->rank == 4 && p->dim[0] == t->dim[0] && nn_param_count(p) == tf_count(t);
    return same_dims || as_conv;
}

/* "3 missing (a, b, c)". */
typedef struct { const char *what; int count; buf names; } complaint;

static void complain(complaint *c, const char *name)
{
    buf_printf(&c->names, "%s%s", c->count++ ? ", " : "", name);
}

static void misshapen(complaint *c, const nn_param *p, const tf_tensor *t)
{
    complain(c, p->name);
    buf_puts(&c->names, " is ");
    nn_dims_print(&c->names, t->rank, t->dim);
    buf_puts(&c->names, ", wants ");
    nn_dims_print(&c->names, p->rank, p->dim);
}

static bool is_paired(const nn_graph *g, const tf_tensor *const *found, const tf_tensor *t)
{
    for (int p = 0; p < g->n_param; p++)
        if (found[p] == t)
            return true;
    return false;
}

/* The head of a transfer: its parameters may have other numbers of rows than the file's. */
typedef struct { int node; const nn_head_map *map; } head_rule;      /* node -1: there is none */

static bool same_but_for_rows(const nn_param *p, const tf_tensor *t)
{
    nn_param other = *p;
    other.dim[0] = t->rank ? t->dim[0] : 0;
    return same_shape(&other, t);
}

static bool fits(const nn_param *p, const tf_tensor *t, const head_rule *h)
{
    return same_shape(p, t) || (p->node == h->node && same_but_for_rows(p, t));
}

static bool check_pairs(const nn_graph *g, const tensor_file *f, const tf_tensor *const *found,
                        const head_rule *h, err *e)
{
    complaint c[3] = { { .what = "missing" }, { .what = "extra" }, { .what = "of another shape" } };
    for (int p = 0; p < g->n_param; p++)
        if (!found[p])
            complain(&c[0], g->param[p].name);
        else if (!fits(&g->param[p], found[p], h))
            misshapen(&c[2], &g->param[p], found[p]);
    for (int i = 0; i < f->n; i++)
        if (!is_counter(f->tensor[i].name) && !is_paired(g, found, &f->tensor[i]))
            complain(&c[1], f->tensor[i].name);
    buf all = { 0 };
    for (int i = 0; i < 3; i++) {
        if (c[i].count)
            buf_printf(&all, "%s %d %s (%s)", all.len ? "," : "", c[i].count, c[i].what,
                       c[i].names.data ? c[i].names.data : "");
        buf_free(&c[i].names);
    }
    bool ok = !all.len && !all.failed;
    if (!ok)
        err_set(e, ERR_DATA, "%s does not fit %s:%s", f->path, g->arch, all.data ? all.data : " out of memory");
    buf_free(&all);
    return ok;
}

/* Rows of the file's head: class o becomes its class row[o]. */
static bool pick_rows(nn_param *to, const tf_tensor *from, const nn_head_map *map, err *e)
{
    if (from->dim[0] != map->of || to->dim[0] != map->n)
        return err_set(e, ERR_CONFIG, "%s: it has %lld classes, picking %d of %d for %lld is impossible",
                       from->name, (long long)from->dim[0], map->n, map->of, (long long)to->dim[0]);
    float *x = mem_new((size_t)tf_count(from), sizeof *x, e);
    const bool ok = x && tf_read_f32(from, x, e);
    const int64_t each = nn_param_count(to) / to->dim[0];
    for (int64_t o = 0; ok && o < to->dim[0]; o++)
        memcpy(to->x + o * each, x + map->row[o] * each, (size_t)each * sizeof *x);
    mem_free(x);
    return ok;
}

static bool fill(nn_graph *g, const char *path, const tf_tensor *const *found, const head_rule *h,
                 nn_transferred *out, err *e)
{
    for (int p = 0; p < g->n_param; p++) {
        nn_param *to = &g->param[p];
        const bool head = to->node == h->node, pick = head && h->map;
        if (head && !pick && !same_shape(to, found[p])) {
            out->fate = NN_HEAD_KEPT;
            continue;
        }
        if (!(pick ? pick_rows(to, found[p], h->map, e) : tf_read_f32(found[p], to->x, e)))
            return err_note(e, "%s", path);
        if (!vec_is_finite(nn_param_count(to), to->x))
            return err_set(e, ERR_DATA, "%s: %s holds a value that is not finite", path, found[p]->name);
        out->tensors++;
    }
    if (h->map)
        out->fate = NN_HEAD_PICKED;
    return true;
}

static bool import(nn_graph *g, const char *path, const head_rule *h, nn_transferred *out, err *e)
{
    tensor_file f;
    if (!tensor_file_open(&f, path, e))
        return false;
    const tf_tensor **found = mem_new((size_t)g->n_param, sizeof *found, e);
    bool ok = false;
    if (found) {
        int best = 0, most = -1;
        for (int m = 0; m < MAPS; m++) {
            int hits = pair_up(g, &f, &maps[m], found);
            if (hits > most) {
                most = hits;
                best = m;
            }
        }
        pair_up(g, &f, &maps[best], found);
        ok = check_pairs(g, &f, found, h, e) && fill(g, path, found, h, out, e);
    }
    mem_free(found);
    tensor_file_close(&f);
    return ok;
}

bool nn_import(nn_graph *g, const char *path, err *e)
{
    return import(g, path, &(head_rule){ .node = -1 }, &(nn_transferred){ 0 }, e);
}

bool nn_transfer(nn_graph *g, const char *path, const nn_head_map *map, nn_transferred *out, err *e)
{
    const nn_node *head = &g->node[g->output];
    *out = (nn_transferred){ .head = head->name };
    if (head->op != NN_OP_linear && head->op != NN_OP_conv2d)
        return err_set(e, ERR_CONFIG, "%s: its output is made by %s, which is no layer of weights", g->arch,
                       head->name);
    return import(g, path, &(head_rule){ g->output, map }, out, e);
}
