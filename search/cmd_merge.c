/* layermerge merge: a solution applied to a model, every segment merged into one convolution, and
 * the proof that nothing changed. */
#include "core/cli.h"
#include "search/search.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { NOISE_IMAGES = 16 };

typedef struct {
    const char *model, *solution, *pruned, *out, *from_pruned, *data, *split, *input, *size;
    int64_t classes, limit;
    double width, tolerance;
} merge_options;

#define AT(member) offsetof(merge_options, member)
static const cli_option options[] = {
    { "model", CLI_TEXT, AT(model), "!", NULL, "the network that was searched: builder or model file" },
    { "solution", CLI_TEXT, AT(solution), "!", NULL, "solution.json" },
    { "out", CLI_TEXT, AT(out), "!", NULL, "write the merged network" },
    { "pruned", CLI_TEXT, AT(pruned), NULL, NULL, "write the pruned, un-merged network" },
    { "from-pruned", CLI_TEXT, AT(from_pruned), NULL, NULL, "merge this pruned network, fine-tuned since" },
    { "data", CLI_TEXT, AT(data), NULL, NULL, "verify on images too: a folder, or builtin:shapes[,...]" },
    { "split", CLI_CHOICE, AT(split), "val", "train|val", "which images" },
    { "limit", CLI_INT, AT(limit), "0", "0:", "class-balanced part of them; 0: all" },
    { "size", CLI_TEXT, AT(size), NULL, NULL, "side of the images the network gets: N or H,W" },
    { "tolerance", CLI_NUMBER, AT(tolerance), "1e-4", "0:", "largest difference, relative to the largest output" },
    CLI_BUILDER(merge_options),
};

typedef struct {
    const cli_common *c;
    const merge_options *o;
    data_set *set;
    nn_graph *base, *pruned, *merged;
    search_chain *chain;
    search_solution solution;
} work;

/* No output may be an input, but --pruned may write --from-pruned back. */
static bool outputs_are_new(const merge_options *o, err *e)
{
    return file_differ("--out", o->out, "--model", o->model, e) && file_differ("--out", o->out, "--solution", o->solution, e)
        && file_differ("--out", o->out, "--from-pruned", o->from_pruned, e) && file_differ("--out", o->out, "--pruned", o->pruned, e)
        && file_differ("--pruned", o->pruned, "--model", o->model, e) && file_differ("--pruned", o->pruned, "--solution", o->solution, e);
}

static bool open_all(work *w, err *e)
{
    const merge_options *o = w->o;
    nn_build b = { .classes = (int)o->classes, .width = o->width };
    data_options d = { .limit = o->limit, .seed = (uint64_t)w->c->seed };
    if (!outputs_are_new(o, e) || !file_may_write(o->out, e) || (o->pruned && !file_may_write(o->pruned, e)))
        return false;
    if (!nn_build_input(&b, o->input, e) || !data_size_parse(&d, o->size, e)
        || (o->data && !(w->set = data_open(o->data, o->split, &d, e))))
        return false;
    w->base = w->set ? train_open_model(o->model, &b, w->set, (uint64_t)w->c->seed, e)
                     : nn_model_open(o->model, &b, (uint64_t)w->c->seed, e);
    w->chain = w->base ? search_chain_new(w->base, e) : NULL;
    if (!w->chain || !search_solution_read(&w->solution, o->solution, e))
        return false;
    if (o->from_pruned)
        return (w->pruned = nn_model_load(o->from_pruned, e)) != NULL;
    w->pruned = search_prune(w->chain, &w->solution, e);
    return w->pruned || err_note(e, "%s", o->solution);
}

/* On noise, and on images when there are some; the worse of both. */
static bool compare(const work *w, search_verdict *v, err *e)
{
    double tolerance = w->o->tolerance;
    if (!search_verify(w->pruned, w->merged, NULL, NOISE_IMAGES, (uint64_t)w->c->seed, tolerance, v, e))
        return false;
    if (!w->set)
        return true;
    search_verdict noise = *v;
    if (!search_verify(w->pruned, w->merged, w->set, 0, (uint64_t)w->c->seed, tolerance, v, e))
        return false;
    v->verified = v->verified && noise.verified;
    v->max_abs = fmax(v->max_abs, noise.max_abs);
    v->max_rel = fmax(v->max_rel, noise.max_rel);
    v->variation = fmax(v->variation, noise.variation);
    v->agreement = fmin(v->agreement, noise.agreement);
    return true;
}

static bool verify(const work *w, search_verdict *v, err *e)
{
    const merge_options *o = w->o;
    bool ok = compare(w, v, e);
    return ok || e->code != ERR_NONFINITE ? ok : err_note(e, "%s", o->from_pruned ? o->from_pruned : o->model);
}

static bool print_verdict(const search_verdict *v, err *e)
{
    buf out = { 0 };
    json_writer j = json_writer_on(&out, false);
    json_begin(&j, NULL, '{');
    json_bool(&j, "verified", v->verified);
    json_number(&j, "max_abs", v->max_abs);
    json_number(&j, "max_rel", v->max_rel);
    json_number(&j, "variation", v->variation);
    json_number(&j, "top1_agreement", v->agreement);
    json_int(&j, "n", v->n);
    json_end(&j, '}');
    bool ok = !out.failed || err_set(e, ERR_NOMEM, "out of memory");
    if (ok)
        puts(out.data);
    buf_free(&out);
    return ok;
}

static bool merge(work *w, err *e)
{
    const merge_options *o = w->o;
    bool wants_pruned = o->pruned && !file_same(o->pruned, o->from_pruned);
    search_verdict v;
    w->merged = search_merge(w->chain, &w->solution, w->pruned, e);
    if (!w->merged)
        return err_note(e, "%s", o->from_pruned ? o->from_pruned : o->solution);
    if (!verify(w, &v, e) || (wants_pruned && !nn_model_save(w->pruned, o->pruned, NULL, 0, e)) || !print_verdict(&v, e))
        return false;
    if (!v.verified)
        return err_set(e, ERR_NEGATIVE, "%s is not written: the merged network differs from the pruned one by %.3g "
                       "relative to the largest output (%.3g allowed), top-1 agreement %.4f", o->out, v.max_rel,
                       o->tolerance, v.agreement);
    return nn_model_save(w->merged, o->out, NULL, 0, e);
}

static bool run(const cli_common *c, const void *opt, int n_word, char **word, err *e)
{
    (void)n_word, (void)word;
    work w = { .c = c, .o = opt };
    bool ok = open_all(&w, e) && merge(&w, e);
    search_solution_free(&w.solution);
    search_chain_free(w.chain);
    nn_graph_free(w.base);
    nn_graph_free(w.pruned);
    nn_graph_free(w.merged);
    data_free(w.set);
    return ok;
}

const cli_verb cmd_merge = {
    "merge", "apply a solution, merge every segment into one convolution, verify",
    options, CLI_COUNT(options), sizeof(merge_options), NULL, run,
};
