/* layermerge.h: what other programs see. Loads, plans and runs; everything below it is hidden. */
#include "layermerge.h"

#include "core/io.h"
#include "data/data.h"
#include "nn/nn.h"

#include <pthread.h>
#include <signal.h>
#include <string.h>

struct lm_model {
    nn_graph *g;
    nn_plan *plan;               /* NULL before lm_plan */
    const nn_node *in, *out;
    data_prep prep;
    char *text, **label;         /* label[] points into text; both NULL without labels */
    int labels;
    float *scratch;              /* one image, channels last */
};

static _Thread_local err last;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int planned;              /* models that have a plan: while there are any, the pool runs */

const char *lm_error(void) { return last.msg; }
const char *lm_version(void) { return CORE_VERSION; }

static int answer(bool ok) { return ok ? 0 : (int)last.code; }

/* ---- loading --------------------------------------------------------------------------------- */

/* The names that train wrote, one per line. */
static bool read_labels(lm_model *m, const char *path, err *e)
{
    tensor_file f;
    if (!tensor_file_open(&f, path, e))
        return false;
    const char *text = tensor_file_meta(&f, "labels");
    const int64_t classes = m->out->dim[3];
    bool ok = !text || ((m->text = mem_text(text, e)) &&
                        (m->label = mem_new((size_t)classes, sizeof *m->label, e)));
    tensor_file_close(&f);
    for (char *s = ok ? m->text : NULL; s && m->labels < classes; ) {
        m->label[m->labels++] = s;
        s = strchr(s, '\n');
        if (s)
            *s++ = 0;
    }
    return ok;
}

static bool open_model(lm_model *m, const char *path, err *e)
{
    m->g = nn_model_load(path, e);
    if (!m->g)
        return false;
    m->in = nn_only_input(m->g);
    m->out = &m->g->node[m->g->output];
    if (!m->in)
        return err_set(e, ERR_CONFIG, "%s: the network does not have exactly one input", path);
    if (m->g->prep[0] && !data_prep_parse(&m->prep, m->g->prep, e))
        return err_note(e, "%s", path);
    const int64_t *d = m->in->dim;
    m->scratch = mem_new((size_t)(d[1] * d[2] * d[3]), sizeof *m->scratch, e);
    return m->scratch && read_labels(m, path, e);
}

lm_model *lm_load(const char *path)
{
    lm_model *m = mem_new(1, sizeof *m, &last);
    if (m && open_model(m, path, &last))
        return m;
    lm_free(m);
    return NULL;
}

static lm_shape shape_of(const nn_node *n)
{
    return (lm_shape){ .c = (int)n->dim[3], .h = (int)n->dim[1], .w = (int)n->dim[2] };
}

lm_shape lm_input(const lm_model *m) { return shape_of(m->in); }
lm_shape lm_output(const lm_model *m) { return shape_of(m->out); }

const char *lm_label(const lm_model *m, int which)
{
    return which >= 0 && which < m->labels ? m->label[which] : NULL;
}

/* ---- planning and running -------------------------------------------------------------------- */

/* The caller's signals and the cores it may use stay its own. */
static bool start_pool(int threads, err *e)
{
    struct sigaction pipe, size;
    sigaction(SIGPIPE, NULL, &pipe);
    sigaction(SIGXFSZ, NULL, &size);
    const bool ok = core_init(&(core_options){ .threads = threads }, e);
    sigaction(SIGPIPE, &pipe, NULL);
    sigaction(SIGXFSZ, &size, NULL);
    par_leave_core();
    return ok;
}

static void drop_plan(lm_model *m)
{
    if (!m->plan)
        return;
    nn_plan_free(m->plan);
    m->plan = NULL;
    if (--planned == 0)
        core_stop();
}

static bool make_plan(lm_model *m, int batch, int threads, err *e)
{
    if (batch < 1 || threads < 0)
        return err_set(e, ERR_CONFIG, "a batch of %d on %d threads is impossible", batch, threads);
    drop_plan(m);
    if (planned && threads && threads != par_threads())
        return err_set(e, ERR_CONFIG, "%d threads wanted, the other models of this process share %d",
                       threads, par_threads());
    if (!planned && !start_pool(threads, e))
        return false;
    m->plan = nn_plan_new(m->g, NN_INFER, batch, e);
    planned += m->plan != NULL;
    if (!planned)
        core_stop();
    return m->plan != NULL;
}

int lm_plan(lm_model *m, int batch, int threads)
{
    pthread_mutex_lock(&lock);
    const bool ok = make_plan(m, batch, threads, &last);
    pthread_mutex_unlock(&lock);
    return answer(ok);
}

/* A batch at a time. Places behind the last image keep old values, which no other image sees. */
static void run(lm_model *m, int64_t n, const float *x, float *y)
{
    const int64_t *in = m->in->dim, *out = m->out->dim, batch = nn_plan_batch(m->plan);
    const int64_t in_floats = in[1] * in[2] * in[3], out_floats = out[1] * out[2] * out[3];
    for (int64_t at = 0; at < n; at += batch) {
        const int64_t some = n - at < batch ? n - at : batch;
        nchw_to_nhwc(x + at * in_floats, some, in[3], in[1], in[2], nn_plan_input(m->plan, 0));
        nn_plan_forward(m->plan);
        nhwc_to_nchw(nn_plan_output(m->plan), some, out[1], out[2], out[3], y + at * out_floats);
    }
}

int lm_run(lm_model *m, int n, const float *x, float *y)
{
    if (!m->plan)
        return answer(err_set(&last, ERR_CONFIG, "lm_run before lm_plan"));
    if (n < 0)
        return answer(err_set(&last, ERR_CONFIG, "%d images cannot be run", n));
    pthread_mutex_lock(&lock);
    run(m, n, x, y);
    pthread_mutex_unlock(&lock);
    return 0;
}

void lm_free(lm_model *m)
{
    if (!m)
        return;
    pthread_mutex_lock(&lock);
    drop_plan(m);
    pthread_mutex_unlock(&lock);
    nn_graph_free(m->g);
    mem_free(m->scratch);
    mem_free(m->label);
    mem_free(m->text);
    mem_free(m);
}

/* ---- images ---------------------------------------------------------------------------------- */

static bool image(const lm_model *m, const void *bytes, size_t size, const char *called, float *x,
                  err *e)
{
    const int64_t *d = m->in->dim;
    if (!m->g->prep[0])
        return err_set(e, ERR_CONFIG, "the model does not say how images are prepared");
    if (m->prep.h != d[1] || m->prep.w != d[2] || m->prep.c != d[3])
        return err_set(e, ERR_CONFIG, "images are prepared as %dx%dx%d, the network takes %lldx%lldx%lld",
                       m->prep.h, m->prep.w, m->prep.c, (long long)d[1], (long long)d[2], (long long)d[3]);
    if (!data_load_bytes(bytes, size, called, &m->prep, m->scratch, e))
        return false;
    nhwc_to_nchw(m->scratch, 1, d[1], d[2], d[3], x);
    return true;
}

int lm_image_bytes(const lm_model *m, const void *bytes, size_t size, float *x)
{
    return answer(image(m, bytes, size, "the image", x, &last));
}

int lm_image(const lm_model *m, const char *path, float *x)
{
    file_map f;
    if (!file_map_open(&f, path, &last))
        return answer(false);
    const bool ok = image(m, f.data, f.size, path, x, &last);
    file_map_close(&f);
    return answer(ok);
}
