/* The register tiles of the weight gradient: MR in-channels (of a tap, or of a row of taps) × NV vectors of
 * out-channels; the sum runs over images, lines and pixels. Heights are body_conv.h's. */

/* COPY_X, COPY_DY: what is read is put side by side by the way, where other tiles find it. */
INLINE void wtile_pixels(const int MR, const int NV, const bool AHEAD, const bool COPY_X, const bool COPY_DY, const wtile_args *t,
                         vf acc[][2])
{
    const int64_t x_step = t->x_step, dy_step = t->dy_step;
    float *x_to = t->x_to, *dy_to = t->dy_to;
    for (int n = 0; n < t->imgs; n++)
        for (int l = 0; l < t->lines; l++) {
            const float *x = t->x + n * t->x_img + l * t->x_line;
            const float *dy = t->dy + n * t->dy_img + l * t->dy_line;
            const float *x_far = x + t->x_ahead, *dy_far = dy + t->dy_ahead;
            for (int q = t->count; q > 0; q--, x += x_step, dy += dy_step) {
                vf d[2];
                if (AHEAD) {
                    __builtin_prefetch(x_far, 0, 2);
                    UNROLL for (int v = 0; v < NV; v++) __builtin_prefetch(dy_far + v * LANES, 0, 2);
                    x_far += t->x_far, dy_far += t->dy_far;
                }
                UNROLL for (int v = 0; v < NV; v++) d[v] = v_load_n(dy + v * LANES, v == NV - 1 ? t->lanes : LANES);
                UNROLL for (int i = 0; i < MR; i++) {
                    vf b = v_set1(x[i]);
                    UNROLL for (int v = 0; v < NV; v++) acc[i][v] = v_fma(b, d[v], acc[i][v]);
                }
                if (COPY_X) {
                    UNROLL for (int i = 0; i < MR; i += LANES) v_store(x_to + i, v_load_n(x + i, MR - i < LANES ? MR - i : LANES));
                    x_to += TILE_MAX;
                }
                if (COPY_DY) {
                    UNROLL for (int v = 0; v < NV; v++) v_store(dy_to + v * LANES, d[v]);
                    dy_to += WIDEST;
                }
            }
        }
}

INLINE void wtile_body(const int MR, const int NV, const wtile_args *t)
{
    vf acc[TILE_MAX][2];
    float *sum = t->sum;
    UNROLL for (int i = 0; i < MR; i++)
        UNROLL for (int v = 0; v < NV; v++)
            acc[i][v] = t->add ? v_load(sum + (i * NV + v) * LANES) : v_zero();
    if (t->x_to && t->dy_to) wtile_pixels(MR, NV, true, true, true, t, acc);
    else if (t->x_to) wtile_pixels(MR, NV, true, true, false, t, acc);
    else if (t->dy_to) wtile_pixels(MR, NV, true, false, true, t, acc);
    else if (t->x_ahead || t->dy_ahead) wtile_pixels(MR, NV, true, false, false, t, acc);
    else wtile_pixels(MR, NV, false, false, false, t, acc);
    UNROLL for (int i = 0; i < MR; i++)
        UNROLL for (int v = 0; v < NV; v++) v_store(sum + (i * NV + v) * LANES, acc[i][v]);
}

INLINE void slice_vector(const int NV, const bool full, const bool prologue, const slice_args *a, int i, int n)
{
    const int64_t x_step = a->x_step, y_step = a->y_step;
    const float *x = a->x + i;
    float *y = a->y + i;
    const vf scale = prologue ? v_load_n(a->scale + i, n) : v_zero(), shift = prologue ? v_load_n(a->shift + i, n) : v_zero();
    const vf lo = v_set1(a->lo), hi = v_set1(a->hi);
    for (int64_t r = a->rows; r > 0; r--, x += x_step, y += y_step)
        UNROLL for (int v = 0; v < NV; v++) {
            vf b = full ? v_load(x + v * LANES) : v_load_n(x, n);
            if (prologue) b = v_min(hi, v_max(lo, v_fma(b, scale, shift)));
            v_store(y + v * LANES, b);
        }
}

static void slice(const slice_args *a)
{
    int i = 0;
    if (!a->scale) for (; i + 2 * LANES <= a->floats; i += 2 * LANES) slice_vector(2, true, false, a, i, LANES);
    for (; i < a->floats; i += LANES) {
        const int n = a->floats - i < LANES ? a->floats - i : LANES;
        if (a->scale) slice_vector(1, false, true, a, i, n);
        else slice_vector(1, false, false, a, i, n);
    }
}

#define X(MR, NV) static void wtile_##MR##_##NV(const wtile_args *t) { wtile_body(MR, NV, t); }
HEIGHTS_1(X) MORE_1(X) HEIGHTS_2(X) MORE_2(X)
#undef X
static void fill_wgrad(kern_table *k)
{
#define X(MR, NV) k->wtile[NV - 1][MR] = wtile_##MR##_##NV;
    HEIGHTS_1(X) MORE_1(X) HEIGHTS_2(X) MORE_2(X)
#undef X
    k->slice = slice;
    k->wtallest[0] = WTALLEST_1;
    k->wtallest[1] = WTALLEST_2;
}
