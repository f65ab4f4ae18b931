/* Depthwise convolution: T neighbouring outputs of one vector of channels in registers. A pixel is
 * loaded once for all taps of a chunk that read it. */

INLINE vf dw_load(const float *p, const bool full, int n) { return full ? v_load(p) : v_load_n(p, n); }

INLINE void dw_taps(const int T, const int S, const int W, const bool full, int n, const float *x, int64_t x_step,
                    const float *w, int64_t w_step, int j0, int j1, vf *acc)
{
    vf tap[CHUNK_TAPS];
    UNROLL for (int b = 0; b < W; b++) tap[b] = dw_load(w + b * w_step, full, n);
    UNROLL for (int j = 0; j < (T - 1) * S + W; j++) {
        if (j < j0 || j >= j1) continue;
        vf v = dw_load(x + j * x_step, full, n);
        UNROLL for (int b = 0; b < W; b++)
            if (j >= b && (j - b) % S == 0 && (j - b) / S < T) acc[(j - b) / S] = v_fma(v, tap[b], acc[(j - b) / S]);
    }
}

INLINE void dw_vector(const int T, const int S, const bool full, const dw_args *d, int c, int n)
{
    vf acc[8], start = d->bias ? dw_load(d->bias + c, full, n) : v_zero(), lo = v_set1(d->lo), hi = v_set1(d->hi);
    UNROLL for (int t = 0; t < T; t++) acc[t] = start;
    for (int a = 0; a < d->rows; a++)
        for (const dw_chunk *k = d->chunk; k < d->chunk + d->chunks; k++) {
            const float *x = d->x + a * d->x_row + k->x + c, *w = d->w + a * d->w_row + k->w + c;
            switch (k->taps) {
            case 1: dw_taps(T, S, 1, full, n, x, d->x_step, w, d->w_step, k->j0, k->j1, acc); break;
            case 2: dw_taps(T, S, 2, full, n, x, d->x_step, w, d->w_step, k->j0, k->j1, acc); break;
            case 3: dw_taps(T, S, 3, full, n, x, d->x_step, w, d->w_step, k->j0, k->j1, acc); break;
            case 4: dw_taps(T, S, 4, full, n, x, d->x_step, w, d->w_step, k->j0, k->j1, acc); break;
            default: dw_taps(T, S, 5, full, n, x, d->x_step, w, d->w_step, k->j0, k->j1, acc); break;
            }
        }
    UNROLL for (int t = 0; t < T; t++) {
        if (t >= d->count) break;
        if (d->residual) acc[t] = v_add(acc[t], dw_load(d->residual + t * d->y_step + c, full, n));
        vf y = v_min(hi, v_max(lo, acc[t]));
        if (full) v_store(d->y + t * d->y_step + c, y);
        else v_store_n(d->y + t * d->y_step + c, n, y);
    }
}

INLINE void dw_body(const int T, const int S, const dw_args *d)
{
    int c = 0;
    for (; c + LANES <= d->channels; c += LANES) dw_vector(T, S, true, d, c, LANES);
    if (c < d->channels) dw_vector(T, S, false, d, c, d->channels - c);
}

/* One tile of one line. Two sums per tap, for even and odd outputs: one alone would wait for itself. */
INLINE void dw_wgrad_tile(const int T, const int S, const int W, const bool full, const dw_wargs *d, const float *x,
                          const float *dy, int count, const dw_chunk *k, vf acc[][2])
{
    vf g[8];
    int n = d->lanes, j0 = k->j0, j1 = k->j1;
    UNROLL for (int t = 0; t < T; t++) g[t] = t < count ? dw_load(dy + t * d->dy_step, full, n) : v_zero();
    UNROLL for (int j = 0; j < (T - 1) * S + W; j++) {
        if (j < j0 || j >= j1) continue;
        vf v = dw_load(x + k->x + j * d->x_step, full, n);
        UNROLL for (int b = 0; b < W; b++) {
            int t = (j - b) / S;
            if (j >= b && (j - b) % S == 0 && t < T) acc[b][t % 2] = v_fma(v, g[t], acc[b][t % 2]);
        }
    }
}

INLINE void dw_wgrad_taps(const int T, const int S, const int W, const bool full, const dw_wargs *d)
{
    vf acc[CHUNK_TAPS][2];
    UNROLL for (int b = 0; b < W; b++) {
        acc[b][0] = d->add ? v_load(d->sum + b * d->sum_step) : v_zero();
        acc[b][1] = v_zero();
    }
    for (int i = 0; i < d->imgs; i++)
        for (int l = 0; l < d->lines; l++) {
            const float *x = d->x + i * d->x_img + l * d->x_line, *dy = d->dy + i * d->dy_img + l * d->dy_line;
            const dw_chunk *k = d->chunk;
            for (int m = 1; m < d->tiles; m++, x += d->x_tile, dy += d->dy_tile, k += d->chunk_step)
                dw_wgrad_tile(T, S, W, full, d, x, dy, T, k, acc);
            dw_wgrad_tile(T, S, W, full, d, x, dy, d->last, k, acc);
        }
    UNROLL for (int b = 0; b < W; b++) v_store(d->sum + b * d->sum_step, v_add(acc[b][0], acc[b][1]));
}

INLINE void dw_wgrad_body(const int T, const int S, const bool full, const dw_wargs *d)
{
    switch (d->chunk->taps) {
    case 1: dw_wgrad_taps(T, S, 1, full, d); break;
    case 2: dw_wgrad_taps(T, S, 2, full, d); break;
    case 3: dw_wgrad_taps(T, S, 3, full, d); break;
    case 4: dw_wgrad_taps(T, S, 4, full, d); break;
    default: dw_wgrad_taps(T, S, 5, full, d); break;
    }
}

#define WIDTHS(X) X(0, 4, 1) X(0, 4, 2) X(1, 7, 1) X(1, 7, 2) X(2, 8, 1) X(2, 8, 2)
#define X(I, T, S) \
    static void dw_##T##_##S(const dw_args *d) { dw_body(T, S, d); } \
    static void dw_wgrad_##T##_##S(const dw_wargs *d) \
    { \
        if (d->lanes == LANES) dw_wgrad_body(T, S, true, d); \
        else dw_wgrad_body(T, S, false, d); \
    }
WIDTHS(X)
#undef X

static void fill_dw(kern_table *k)
{
#define X(I, T, S) k->dw[I][S - 1] = dw_##T##_##S; k->dw_wgrad[I][S - 1] = dw_wgrad_##T##_##S;
    WIDTHS(X)
#undef X
}
