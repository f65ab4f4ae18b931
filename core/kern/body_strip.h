/* Strip: a tile of dense convolution of MR neighbours in a line, for several neighbouring taps
 * at once. A channel of a pixel is then loaded once for all outputs that it belongs to: half of the
 * loads, which count where another thread of the core takes a part of the instructions it can start. Sixteen
 * registers are too few for that. */

/* W taps of input channels [c, end). ENDS: only the first and the last pixel may be outside the image, which is all
 * that 3×3 kernels want. */
INLINE void strip_stretch(const int MR, const int NV, const int W, const bool FETCH, const bool ENDS, const float *const *p,
                          int64_t c, int64_t end, uint32_t live, const float *w, const float *far, vf acc[][NV_MAX])
{
    const int last = MR + W - 2;
    const bool at_first = live & 1, at_last = live >> last & 1;
    for (; c < end; c++, w += W * NV * LANES) {
        vf b[STRIP_TAPS][2];
        if (FETCH) {
            __builtin_prefetch(far);
            __builtin_prefetch(far + TILE_FETCH);
            far += STRIP_FETCH;
        }
        UNROLL for (int k = 0; k < W; k++)
            UNROLL for (int v = 0; v < NV; v++) b[k][v] = v_load(w + (k * NV + v) * LANES);
        if (!ENDS) live = bits_held(live);
        UNROLL for (int j = 0; j <= last; j++) {
            if (ENDS ? (j == 0 && !at_first) || (j == last && !at_last) : !(live >> j & 1)) continue;
            const vf a = v_held(v_set1(p[j][c]));
            UNROLL for (int k = 0; k < W; k++)
                if (j >= k && j - k < MR)
                    UNROLL for (int v = 0; v < NV; v++) acc[j - k][v] = v_fma(a, b[k][v], acc[j - k][v]);
        }
    }
}

INLINE void strip_run(const int MR, const int NV, const int W, const float *const *p, const tile_args *t, const conv_run *r,
                      vf acc[][NV_MAX])
{
    const float *w = t->w + r->w;
    const int64_t c = r->x, end = c + t->len;
    const uint32_t all = (1u << (MR + W - 1)) - 1, ends = 1 | (all + 1) >> 1;
    if ((r->live | ends) != all) strip_stretch(MR, NV, W, NV == 2, false, p, c, end, r->live, w, t->far ? t->far : w, acc);
    else if (NV == 2 && t->far) strip_stretch(MR, NV, W, true, true, p, c, end, r->live, w, t->far, acc);
    else strip_stretch(MR, NV, W, false, true, p, c, end, r->live, w, NULL, acc);
}

INLINE void strip_runs(const int MR, const int NV, const tile_args *t, int64_t ox, vf acc[][NV_MAX])
{
    const float *p[TILE_MAX + STRIP_TAPS - 1];
    UNROLL for (int j = 0; j < MR + STRIP_TAPS - 1; j++) p[j] = t->x + ox + j * t->x_step;
    for (const conv_run *r = t->run; r < t->run + t->runs; r++)
        if (r->taps == 2) strip_run(MR, NV, 2, p, t, r, acc);
        else strip_run(MR, NV, 3, p, t, r, acc);
}

INLINE void strip_body(const int MR, const int NV, const tile_args *t)
{
    vf acc[TILE_MAX][NV_MAX];
    tile_start(MR, NV, false, t, acc);
    strip_runs(MR, NV, t, t->ox[0], acc);
    tile_end(MR, NV, false, t, acc);
}

/* A list of strips. */
INLINE void strip_list_tiles(const int MR, const int NV, const bool plain, const tile_args *t)
{
    const int32_t *ox = t->ox, *oy = t->oy;
    for (int k = t->tiles; k > 0; k--, ox += MR, oy += MR) {
        vf acc[TILE_MAX][NV_MAX];
        tile_bias(MR, NV, false, t, acc);
        strip_runs(MR, NV, t, *ox, acc);
        tile_store(MR, NV, false, plain, true, t, NULL, *oy, acc);
    }
}

INLINE void strip_list_body(const int MR, const int NV, const tile_args *t)
{
    if (is_plain(false, t)) strip_list_tiles(MR, NV, true, t);
    else strip_list_tiles(MR, NV, false, t);
}

#define X(MR, NV) static void strip_##MR##_##NV(const tile_args *t) { strip_body(MR, NV, t); } \
    static void strip_list_##MR##_##NV(const tile_args *t) { strip_list_body(MR, NV, t); }
STRIPS_1(X) STRIPS_2(X)
#undef X
static void fill_strip(kern_table *k)
{
#define X(MR, NV) k->strip[NV - 1][MR] = strip_##MR##_##NV, k->strip_list[NV - 1][MR] = strip_list_##MR##_##NV;
    STRIPS_1(X) STRIPS_2(X)
#undef X
    k->longest[0] = LONGEST_1;
    k->longest[1] = LONGEST_2;
}
