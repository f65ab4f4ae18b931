/* One window of a pool: taps are rows × cols pixels of the image, each `step` floats of channels. */

INLINE const float *tap_at(const pool_args *a, const float *x, int h, int w, int c)
{
    return x + h * a->line + (int64_t)w * a->step + c;
}

/* A NaN wins over everything. */
INLINE vf window_max(const pool_args *a, int c, int n)
{
    vf most = v_set1(-INFINITY);
    for (int h = 0; h < a->rows; h++)
        for (int w = 0; w < a->cols; w++) {
            vf x = v_load_n(tap_at(a, a->x, h, w, c), n), larger = v_max(x, most);
            most = v_pick(x, larger, x, larger);
        }
    return most;
}

static void pool_max(const pool_args *a)
{
    OWN(a);
    for (int c = 0; c < a->channels; c += LANES) {
        int n = (int)kern_min(LANES, a->channels - c);
        v_store_n(a->out + c, n, window_max(a, c, n));
    }
}

/* The first tap that is the maximum gets dy. */
static void pool_max_back(const pool_args *a)
{
    OWN(a);
    for (int c = 0; c < a->channels; c += LANES) {
        int n = (int)kern_min(LANES, a->channels - c);
        vf most = window_max(a, c, n), left = v_load_n(a->dy + c, n);
        for (int h = 0; h < a->rows; h++)
            for (int w = 0; w < a->cols; w++) {
                vf x = v_load_n(tap_at(a, a->x, h, w, c), n);
                float *dx = a->out + h * a->line + (int64_t)w * a->step + c;
                v_store_n(dx, n, v_add(v_load_n(dx, n), v_pick(x, most, left, v_zero())));
                left = v_pick(x, most, v_zero(), left);
            }
    }
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
