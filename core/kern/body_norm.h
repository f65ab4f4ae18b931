/* Rows × channels and plain vectors: everything that is bound by memory, in as few passes as can
 * be. Per-channel numbers come as patterns: `width` floats that repeat along the rows (a whole
 * number of rows), so that few channels still fill a vector. */

/* Clamps for the ReLU kinds; none: the whole line. */
INLINE vf act_low(act_kind act) { return v_set1(act == ACT_RELU || act == ACT_RELU6 ? 0 : -INFINITY); }
INLINE vf act_high(act_kind act) { return v_set1(act == ACT_RELU6 ? 6 : INFINITY); }

/* ---- sums over rows, in double, row after row -------------------------------------------------- */

typedef struct { vd s[2], q[2]; } sums;

INLINE void sums_add(sums *a, vf v, vf w)
{
    a->s[0] = d_add(a->s[0], v_lo(v));
    a->s[1] = d_add(a->s[1], v_hi(v));
    a->q[0] = d_fma(v_lo(v), v_lo(w), a->q[0]);
    a->q[1] = d_fma(v_hi(v), v_hi(w), a->q[1]);
}

INLINE void sums_store(const sums *a, int n, double *s, double *q)
{
    double out[2][LANES];
    for (int h = 0; h < 2; h++) {
        d_store(out[0] + h * (LANES / 2), a->s[h]);
        d_store(out[1] + h * (LANES / 2), a->q[h]);
    }
    for (int i = 0; i < n; i++) { s[i] = out[0][i]; q[i] = out[1][i]; }
}

/* Two vectors of channels at a time; `full` but for the last. */
INLINE void moments_of(const norm_args *a, int c, const int NV, const bool full)
{
    sums acc[2];
    int n = full ? LANES : a->c - c;
    UNROLL for (int v = 0; v < NV; v++) acc[v] = (sums){ { d_zero(), d_zero() }, { d_zero(), d_zero() } };
    for (int64_t r = 0; r < a->rows; r++)
        UNROLL for (int v = 0; v < NV; v++) {
            const float *p = a->x + r * a->c + c + v * LANES;
            vf x = full ? v_load(p) : v_load_n(p, n);
            sums_add(&acc[v], x, x);
        }
    UNROLL for (int v = 0; v < NV; v++) sums_store(&acc[v], n, a->sum + c + v * LANES, a->sum + a->c + c + v * LANES);
}

static void moments(const norm_args *a)
{
    int c = 0;
    for (; c + 2 * LANES <= a->c; c += 2 * LANES) moments_of(a, c, 2, true);
    for (; c + LANES <= a->c; c += LANES) moments_of(a, c, 1, true);
    if (c < a->c) moments_of(a, c, 1, false);
}

/* Sums of dz and dz*(x - mean), dz being dy behind the activation's gate. */
INLINE void back_moments_of(const norm_args *a, int c, const int NV, const bool full, const bool gated)
{
    sums acc[2];
    vf mean[2], lo = v_zero(), hi = v_set1(a->gate_high);
    int n = full ? LANES : a->c - c;
    UNROLL for (int v = 0; v < NV; v++) {
        acc[v] = (sums){ { d_zero(), d_zero() }, { d_zero(), d_zero() } };
        mean[v] = v_load_n(a->mean + c + v * LANES, n);
    }
    for (int64_t r = 0; r < a->rows; r++)
        UNROLL for (int v = 0; v < NV; v++) {
            int64_t at = r * a->c + c + v * LANES;
            vf x = full ? v_load(a->x + at) : v_load_n(a->x + at, n), dz = full ? v_load(a->dy + at) : v_load_n(a->dy + at, n);
            if (gated) dz = v_gate(full ? v_load(a->y + at) : v_load_n(a->y + at, n), lo, hi, dz);
            sums_add(&acc[v], dz, v_sub(x, mean[v]));
        }
    UNROLL for (int v = 0; v < NV; v++) sums_store(&acc[v], n, a->sum + c + v * LANES, a->sum + a->c + c + v * LANES);
}

INLINE void back_moments_all(const norm_args *a, const bool gated)
{
    int c = 0;
    for (; c + 2 * LANES <= a->c; c += 2 * LANES) back_moments_of(a, c, 2, true, gated);
    for (; c + LANES <= a->c; c += LANES) back_moments_of(a, c, 1, true, gated);
    if (c < a->c) back_moments_of(a, c, 1, false, gated);
}

static void back_moments(const norm_args *a)
{
    if (a->act == ACT_NONE) back_moments_all(a, false);
    else back_moments_all(a, true);
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
    vf lo = act_low(a->act), hi = act_high(a->act);
    for (int64_t i = 0; i < a->count; i += a->width) {
        int c = 0, width = (int)kern_min(a->width, a->count - i);
        for (; c + LANES <= width; c += LANES) affine_vector(a, i + c, c, LANES, lo, hi, silu);
        if (c < width) affine_vector(a, i + c, c, width - c, lo, hi, silu);
    }
}

/* out = act(x*p0 + p1 + residual) */
static void affine(const norm_args *a)
{
    if (a->act == ACT_SILU) affine_all(a, true);
    else affine_all(a, false);
}

INLINE void put_vector(grad_out g, int64_t at, int n, vf v)
{
    if (!g.p) return;
    if (g.accumulate) v = v_add(v_load_n(g.p + at, n), v);
    v_store_n(g.p + at, n, v);
}

INLINE void bn_back_vector(const norm_args *a, int64_t at, int c, int n, vf hi, const bool gated)
{
    vf x = v_load_n(a->x + at, n), dz = v_load_n(a->dy + at, n);
    if (gated) dz = v_gate(v_load_n(a->y + at, n), v_zero(), hi, dz);
    put_vector(a->dres, at, n, dz);
    put_vector(a->dx, at, n, v_fma(x, v_load_n(a->p1 + c, n), v_fma(dz, v_load_n(a->p0 + c, n), v_load_n(a->p2 + c, n))));
}

INLINE void bn_back_all(const norm_args *a, const bool gated)
{
    vf hi = v_set1(a->gate_high);
    for (int64_t i = 0; i < a->count; i += a->width) {
        int c = 0, width = (int)kern_min(a->width, a->count - i);
        for (; c + LANES <= width; c += LANES) bn_back_vector(a, i + c, c, LANES, hi, gated);
        if (c < width) bn_back_vector(a, i + c, c, width - c, hi, gated);
    }
}

/* dz = gate(dy); dres (+)= dz; dx (+)= dz*p0 + x*p1 + p2 */
static void bn_back(const norm_args *a)
{
    if (a->act == ACT_NONE) bn_back_all(a, false);
    else bn_back_all(a, true);
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
