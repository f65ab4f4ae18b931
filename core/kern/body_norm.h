/* Rows × channels and plain vectors: everything that is bound by memory, in as few passes as can
 * be. Per-channel numbers come as patterns: `width` floats that repeat along the rows (a whole
 * number of rows), so that few channels still fill a vector. */

/* ---- sums over rows ------------------------------------------------------------------------------ */

/* Four rows are added up as floats, in pairs, then in double. They lie side by side, so memory is read
 * in its order, however many channels there are; but in four streams, which the hardware does not
 * foresee, so what is at least FETCH_AHEAD floats away is fetched by the way. */
enum { SUM_ROWS = 4, FETCH_AHEAD = 1024 };

INLINE int64_t fetch_distance(const norm_args *a)
{
    int64_t rows = SUM_ROWS * a->step;
    return (FETCH_AHEAD + rows - 1) / rows * rows;
}

INLINE vf row_tree(const vf *v, const int R)
{
    return R == SUM_ROWS ? v_add(v_add(v[0], v[1]), v_add(v[2], v[3])) : v[0];
}

INLINE void sums_add(double *s, double *q, int n, vf vs, vf vq)
{
    if (n == LANES) {
        d_store(s, d_add(d_load(s), v_lo(vs)));
        d_store(s + LANES / 2, d_add(d_load(s + LANES / 2), v_hi(vs)));
        d_store(q, d_add(d_load(q), v_lo(vq)));
        d_store(q + LANES / 2, d_add(d_load(q + LANES / 2), v_hi(vq)));
        return;
    }
    float part[2][LANES];
    v_store(part[0], vs);
    v_store(part[1], vq);
    for (int i = 0; i < n; i++) { s[i] += (double)part[0][i]; q[i] += (double)part[1][i]; }
}

INLINE void moments_of(const norm_args *a, int64_t r, const int R, const bool about, int64_t far, int c, int n)
{
    vf x[SUM_ROWS], xx[SUM_ROWS], pivot = about ? v_load_n(a->pivot + c, n) : v_zero();
    UNROLL for (int i = 0; i < R; i++) {
        const float *from = a->x + (r + i) * a->step + c;
        __builtin_prefetch(from + far);
        x[i] = v_load_n(from, n);
        if (about) x[i] = v_sub(x[i], pivot);
        xx[i] = v_mul(x[i], x[i]);
    }
    sums_add(a->sum + c, a->sum + a->sum_step + c, n, row_tree(x, R), row_tree(xx, R));
}

typedef enum { OPEN, FROM_Y, FROM_X } gate_kind;        /* all passes; the output, or the input, tells */

/* dz = dy behind the activation's gate. FROM_X: behind that of x*g0 + g1. */
INLINE vf gated(const norm_args *a, const gate_kind gate, int64_t at, int c, int n, vf x, vf hi)
{
    vf dz = v_load_n(a->dy + at, n);
    if (gate == FROM_Y) dz = v_gate(v_load_n(a->y + at, n), v_zero(), hi, dz);
    if (gate == FROM_X) dz = v_gate(v_fma(x, v_load_n(a->g0 + c, n), v_load_n(a->g1 + c, n)), v_zero(), hi, dz);
    return dz;
}

/* Sums of dz and dz*(x - mean). */
INLINE void back_moments_of(const norm_args *a, const gate_kind gate, int64_t r, const int R, int64_t far, int c, int n)
{
    vf dz[SUM_ROWS], dot[SUM_ROWS], hi = v_set1(a->gate_high), mean = v_load_n(a->mean + c, n);
    UNROLL for (int i = 0; i < R; i++) {
        int64_t at = (r + i) * a->step + c;
        __builtin_prefetch(a->x + at + far);
        __builtin_prefetch(a->dy + at + far);
        vf x = v_load_n(a->x + at, n);
        dz[i] = gated(a, gate, at, c, n, x, hi);
        dot[i] = v_mul(dz[i], v_sub(x, mean));
    }
    sums_add(a->sum + c, a->sum + a->sum_step + c, n, row_tree(dz, R), row_tree(dot, R));
}

#define OVER_CHANNELS(c, n, f) do { \
        int c = 0; \
        for (; c + LANES <= a->c; c += LANES) { const int n = LANES; f; } \
        if (c < a->c) { const int n = a->c - c; f; } \
    } while (0)

INLINE void moments_all(const norm_args *a, const bool about)
{
    int64_t r = 0, far = fetch_distance(a);
    for (; r + SUM_ROWS <= a->rows; r += SUM_ROWS) OVER_CHANNELS(c, n, moments_of(a, r, SUM_ROWS, about, far, c, n));
    for (; r < a->rows; r++) OVER_CHANNELS(c, n, moments_of(a, r, 1, about, far, c, n));
}

/* sum += */
static void moments(const norm_args *a)
{
    OWN(a);
    if (a->pivot) moments_all(a, true);
    else moments_all(a, false);
}

INLINE void back_moments_all(const norm_args *a, const gate_kind gate)
{
    int64_t r = 0, far = fetch_distance(a);
    for (; r + SUM_ROWS <= a->rows; r += SUM_ROWS) OVER_CHANNELS(c, n, back_moments_of(a, gate, r, SUM_ROWS, far, c, n));
    for (; r < a->rows; r++) OVER_CHANNELS(c, n, back_moments_of(a, gate, r, 1, far, c, n));
}

/* sum += */
static void back_moments(const norm_args *a)
{
    OWN(a);
    if (a->act == ACT_NONE) back_moments_all(a, OPEN);
    else if (a->y) back_moments_all(a, FROM_Y);
    else back_moments_all(a, FROM_X);
}

/* ---- one value in, one value out ---------------------------------------------------------------- */

INLINE void affine_vector(const norm_args *a, int64_t at, int c, int n, vf lo, vf hi, const bool silu)
{
    vf v = v_load_n(a->x + at, n);
    if (a->p0 && a->p1) v = v_fma(v, v_load_n(a->p0 + c, n), v_load_n(a->p1 + c, n));
    else if (a->p0) v = v_mul(v, v_load_n(a->p0 + c, n));
    else if (a->p1) v = v_add(v, v_load_n(a->p1 + c, n));
    if (a->residual) v = v_add(v, v_load_n(a->residual + at, n));
    v_store_n(a->out + at, n, silu ? v_mul(v, v_sigmoid(v)) : v_min(hi, v_max(lo, v)));
}

INLINE void affine_all(const norm_args *a, const bool silu)
{
    vf lo = v_set1(act_low(a->act)), hi = v_set1(act_high(a->act));
    for (int64_t i = 0; i < a->count; i += a->width) {
        int c = 0, width = (int)kern_min(a->width, a->count - i);
        for (; c + LANES <= width; c += LANES) affine_vector(a, i + c, c, LANES, lo, hi, silu);
        if (c < width) affine_vector(a, i + c, c, width - c, lo, hi, silu);
    }
}

/* out = act(x*p0 + p1 + residual) */
static void affine(const norm_args *a)
{
    OWN(a);
    if (a->act == ACT_SILU) affine_all(a, true);
    else affine_all(a, false);
}

INLINE void put_vector(grad_out g, int64_t at, int n, vf v)
{
    if (!g.p) return;
    if (g.accumulate) v = v_add(v_load_n(g.p + at, n), v);
    v_store_n(g.p + at, n, v);
}

INLINE void bn_back_vector(const norm_args *a, const gate_kind gate, int64_t at, int c, int n, vf hi)
{
    vf x = v_load_n(a->x + at, n), dz = gated(a, gate, at, c, n, x, hi);
    put_vector(a->dres, at, n, dz);
    put_vector(a->dx, at, n, v_fma(x, v_load_n(a->p1 + c, n), v_fma(dz, v_load_n(a->p0 + c, n), v_load_n(a->p2 + c, n))));
}

INLINE void bn_back_all(const norm_args *a, const gate_kind gate)
{
    vf hi = v_set1(a->gate_high);
    for (int64_t i = 0; i < a->count; i += a->width) {
        int c = 0, width = (int)kern_min(a->width, a->count - i);
        for (; c + LANES <= width; c += LANES) bn_back_vector(a, gate, i + c, c, LANES, hi);
        if (c < width) bn_back_vector(a, gate, i + c, c, width - c, hi);
    }
}

/* dz = gate(dy); dres (+)= dz; dx (+)= dz*p0 + x*p1 + p2 */
static void bn_back(const norm_args *a)
{
    OWN(a);
    if (a->act == ACT_NONE) bn_back_all(a, OPEN);
    else if (a->y) bn_back_all(a, FROM_Y);
    else bn_back_all(a, FROM_X);
}

INLINE void act_back_vector(const norm_args *a, int64_t i, int n, vf hi)
{
    vf v = v_load_n(a->dy + i, n);
    if (a->act == ACT_SILU) {
        vf x = v_load_n(a->x + i, n), s = v_sigmoid(x);
        v = v_mul(v, v_mul(s, v_fma(x, v_sub(v_set1(1), s), v_set1(1))));
    } else if (a->act != ACT_NONE) {
        v = v_gate(v_load_n(a->y + i, n), v_zero(), hi, v);
    }
    put_vector(a->dx, i, n, v);
}

/* dx (+)= dy * act' */
static void act_back(const norm_args *a)
{
    OWN(a);
    vf hi = v_set1(a->gate_high);
    int64_t i = 0;
    for (; i + LANES <= a->count; i += LANES) act_back_vector(a, i, LANES, hi);
    if (i < a->count) act_back_vector(a, i, (int)(a->count - i), hi);
}

/* ---- optimisers ---------------------------------------------------------------------------------- */

INLINE void sgd_vector(const optim_args *o, int64_t i, int n)
{
    vf w = v_load_n(o->w + i, n), mu = v_set1(o->mu);
    vf g = v_add(v_mul(v_load_n(o->g + i, n), v_set1(o->gscale)), v_mul(v_set1(o->wd), w));
    vf m = o->flag ? g : v_add(v_mul(mu, v_load_n(o->m + i, n)), g);
    v_store_n(o->m + i, n, m);
    v_store_n(o->w + i, n, v_sub(w, v_mul(v_set1(o->lr), o->nesterov ? v_add(g, v_mul(mu, m)) : m)));
}

static void sgd(const optim_args *o)
{
    OWN(o);
    int64_t i = 0;
    for (; i + LANES <= o->count; i += LANES) sgd_vector(o, i, LANES);
    if (i < o->count) sgd_vector(o, i, (int)(o->count - i));
}

INLINE void adam_vector(const optim_args *o, int64_t i, int n)
{
    vf w = v_mul(v_load_n(o->w + i, n), v_set1(o->flag ? 1 - o->lr * o->wd : 1));
    vf g = v_mul(v_load_n(o->g + i, n), v_set1(o->gscale));
    if (!o->flag) g = v_add(g, v_mul(v_set1(o->wd), w));
    vf m = v_add(v_mul(v_set1(o->b1), v_load_n(o->m + i, n)), v_mul(v_set1(1 - o->b1), g));
    vf v = v_add(v_mul(v_set1(o->b2), v_load_n(o->v + i, n)), v_mul(v_mul(v_set1(1 - o->b2), g), g));
    v_store_n(o->m + i, n, m);
    v_store_n(o->v + i, n, v);
    vf down = v_add(v_div(v_sqrt(v), v_set1(o->root_c2)), v_set1(o->eps));
    v_store_n(o->w + i, n, v_sub(w, v_mul(v_set1(o->step), v_div(m, down))));
}

static void adam(const optim_args *o)
{
    OWN(o);
    int64_t i = 0;
    for (; i + LANES <= o->count; i += LANES) adam_vector(o, i, LANES);
    if (i < o->count) adam_vector(o, i, (int)(o->count - i));
}

/* w = a*w + b*g */
INLINE void blend_vector(const optim_args *o, int64_t i, int n)
{
    vf w = v_mul(v_set1(o->a), v_load_n(o->w + i, n));
    v_store_n(o->w + i, n, v_add(w, v_mul(v_set1(o->b), v_load_n(o->g + i, n))));
}

static void blend(const optim_args *o)
{
    OWN(o);
    int64_t i = 0;
    for (; i + LANES <= o->count; i += LANES) blend_vector(o, i, LANES);
    if (i < o->count) blend_vector(o, i, (int)(o->count - i));
}

/* Sum of squares: lane by lane in double, then the lanes in order. */
static double squares(int64_t count, const float *x)
{
    vd s[2] = { d_zero(), d_zero() };
    for (int64_t i = 0; i < count; i += LANES) {
        vf v = v_load_n(x + i, (int)kern_min(LANES, count - i));
        s[0] = d_fma(v_lo(v), v_lo(v), s[0]);
        s[1] = d_fma(v_hi(v), v_hi(v), s[1]);
    }
    double out[LANES], total = 0;
    d_store(out, s[0]);
    d_store(out + LANES / 2, s[1]);
    for (int i = 0; i < LANES; i++) total += out[i];
    return total;
}

/* x - x is 0 for a finite x and NaN for every other. */
static bool all_finite(int64_t count, const float *x)
{
    vf s = v_zero();
    for (int64_t i = 0; i < count; i += LANES) {
        vf v = v_load_n(x + i, (int)kern_min(LANES, count - i));
        s = v_add(s, v_sub(v, v));
    }
    float out[LANES], total = 0;
    v_store(out, s);
    for (int i = 0; i < LANES; i++) total += out[i];
    return total == 0;
}

static void fill_norm(kern_table *k)
{
    k->moments = moments;
    k->back_moments = back_moments;
    k->affine = affine;
    k->bn_back = bn_back;
    k->act_back = act_back;
    k->sgd = sgd;
    k->adam = adam;
    k->blend = blend;
    k->squares = squares;
    k->finite = all_finite;
}
