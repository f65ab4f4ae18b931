/* One window of a pool: taps are rows × cols pixels of the image, each `step` floats of channels. */

INLINE const float *tap_at(const pool_args *a, const float *x, int h, int w, int c)
{
    return x + h * a->line + (int64_t)w * a->step + c;
}

/* So many vectors of channels at once, or each maximum waits for the one before. n: valid in each. */
enum { MAX_VECTORS = 4 };

/* A NaN wins over everything. */
INLINE void window_max(const int NV, const pool_args *a, int c, int n, vf *most)
{
    UNROLL for (int v = 0; v < NV; v++) most[v] = v_set1(-INFINITY);
    for (int h = 0; h < a->rows; h++)
        for (int w = 0; w < a->cols; w++)
            UNROLL for (int v = 0; v < NV; v++) {
                vf x = v_load_n(tap_at(a, a->x, h, w, c + v * LANES), n), larger = v_max(x, most[v]);
                most[v] = v_pick(x, larger, x, larger);
            }
}

INLINE void max_at(const int NV, const pool_args *a, int c, int n)
{
    vf most[MAX_VECTORS];
    window_max(NV, a, c, n, most);
    UNROLL for (int v = 0; v < NV; v++) v_store_n(a->out + c + v * LANES, n, most[v]);
}

/* The first tap that is the maximum gets dy. */
INLINE void max_back_at(const int NV, const pool_args *a, int c, int n)
{
    vf most[MAX_VECTORS], left[MAX_VECTORS];
    window_max(NV, a, c, n, most);
    UNROLL for (int v = 0; v < NV; v++) left[v] = v_load_n(a->dy + c + v * LANES, n);
    for (int h = 0; h < a->rows; h++)
        for (int w = 0; w < a->cols; w++)
            UNROLL for (int v = 0; v < NV; v++) {
                const int64_t at = h * a->line + (int64_t)w * a->step + c + v * LANES;
                vf x = v_load_n(a->x + at, n);
                v_store_n(a->out + at, n, v_add(v_load_n(a->out + at, n), v_pick(x, most[v], left[v], v_zero())));
                left[v] = v_pick(x, most[v], v_zero(), left[v]);
            }
}

static void pool_max(const pool_args *a)
{
    int c = 0;
    OWN(a);
    for (; c + MAX_VECTORS * LANES <= a->channels; c += MAX_VECTORS * LANES) max_at(MAX_VECTORS, a, c, LANES);
    for (; c < a->channels; c += LANES) max_at(1, a, c, (int)kern_min(LANES, a->channels - c));
}

static void pool_max_back(const pool_args *a)
{
    int c = 0;
    OWN(a);
    for (; c + MAX_VECTORS * LANES <= a->channels; c += MAX_VECTORS * LANES) max_back_at(MAX_VECTORS, a, c, LANES);
    for (; c < a->channels; c += LANES) max_back_at(1, a, c, (int)kern_min(LANES, a->channels - c));
}

static void pool_mean(const pool_args *a)
{
    OWN(a);
    for (int c = 0; c < a->channels; c += LANES) {
        int n = (int)kern_min(LANES, a->channels - c);
        vf sum = v_zero();
        for (int h = 0; h < a->rows; h++)
            for (int w = 0; w < a->cols; w++) sum = v_add(sum, v_load_n(tap_at(a, a->x, h, w, c), n));
        v_store_n(a->out + c, n, v_mul(sum, v_set1(a->weight)));
    }
}

static void pool_mean_back(const pool_args *a)
{
    OWN(a);
    for (int c = 0; c < a->channels; c += LANES) {
        int n = (int)kern_min(LANES, a->channels - c);
        vf share = v_mul(v_load_n(a->dy + c, n), v_set1(a->weight));
        for (int h = 0; h < a->rows; h++)
            for (int w = 0; w < a->cols; w++) {
                float *dx = a->out + h * a->line + (int64_t)w * a->step + c;
                v_store_n(dx, n, v_add(v_load_n(dx, n), share));
            }
    }
}

static void fill_pool(kern_table *k)
{
    k->pool_max = pool_max;
    k->pool_max_back = pool_max_back;
    k->pool_mean = pool_mean;
    k->pool_mean_back = pool_mean_back;
}
