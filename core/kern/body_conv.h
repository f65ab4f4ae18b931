/* The register tiles of dense convolution, forward and data gradient; body_strip.h has those of neighbours, body_wgrad.h the
 * weight gradient's.
 *
 * Tile: MR pixels × NV vectors of out-channels. The sum runs over `runs`
 * stretches of `len` consecutive input floats (a tap's channels, or a whole row of taps), the same
 * for every pixel up to where the pixel starts; the packed weights hold NV*LANES out-channels for
 * each step. A long sum may come in parts: accumulators rest in memory between them. Four vectors are those of
 * two panels of weights: six pixels load ten times for 24 multiply-adds where 14 times two load 16 for 28.
 * A series is several tiles in a row, of sums that are too short for a call each. Where a tile ends, what clamps and
 * stores waits for the last sums and keeps the next tile's out of the machine's window; of short sums lower tiles, of which it
 * holds more than one, lose less by that than they load more. */

enum { NV_MAX = 4 };
#define PANEL(NV) ((NV) < 2 ? (NV) : 2)                 /* vectors of a panel: four are two panels' */

/* HALF: of the second vector half is valid, and the other half, where the weights stand again, is the next pixel's: three
 * multiply-adds do for two pixels. Sums of pixel i's vector v are kept, if so: */
INLINE bool tile_sums(const bool HALF, int i, int v) { return !(HALF && v && i % 2); }

/* w2: the weights of the third and fourth vector, which are another panel's. */
INLINE void tile_step(const int MR, const int NV, const bool HALF, const float *const *p, int64_t c, const float *w, const float *w2,
                      vf acc[][NV_MAX])
{
    vf b[NV_MAX], x = v_zero();
    UNROLL for (int v = 0; v < NV; v++) b[v] = v_load((v < 2 ? w : w2) + v % 2 * LANES);
    UNROLL for (int i = 0; i < MR; i++) {
        const vf before = x;
        x = v_set1(p[i][c]);
        if (!HALF) UNROLL for (int v = 0; v < NV; v++) acc[i][v] = v_fma(x, b[v], acc[i][v]);
        else acc[i][0] = v_fma(x, b[0], acc[i][0]);
        if (HALF && i % 2) acc[i - 1][1] = v_fma(v_halves(before, x), b[1], acc[i - 1][1]);
        else if (HALF && i == MR - 1) acc[i][1] = v_fma(x, b[1], acc[i][1]);
    }
}

/* Input floats [c, end), four steps at a time: pointers that do not fit in registers are then
 * loaded less often. In the order of memory and into the first cache, what is fetched leads the machine's own
 * fetches, which then run before it. MOVE: the pointers go along, so that none is left to be computed. */
INLINE void tile_stretch(const int MR, const int NV, const bool HALF, const bool FETCH, const bool MOVE, const float **p, int64_t c,
                         int64_t end, const float *w, int64_t pair, const float *far, vf acc[][NV_MAX])
{
    const float *w2 = w + pair;
    for (; c + 4 <= end; c += 4, w += 4 * PANEL(NV) * LANES) {
        if (FETCH) {
            UNROLL for (int l = 0; l < 4; l++) __builtin_prefetch(far + l * TILE_FETCH);
            far += 4 * TILE_FETCH;
        }
        UNROLL for (int u = 0; u < 4; u++)
            tile_step(MR, NV, HALF, p, MOVE ? u : c + u, w + u * PANEL(NV) * LANES, w2 + u * PANEL(NV) * LANES, acc);
        if (MOVE) UNROLL for (int i = 0; i < MR; i++) p[i] = at_held(p[i] + 4);
        if (NV > 2) w2 = at_held(w2 + 4 * PANEL(NV) * LANES);
    }
    for (; c < end; c++, w += PANEL(NV) * LANES, w2 += PANEL(NV) * LANES) {
        tile_step(MR, NV, HALF, p, MOVE ? 0 : c, w, w2, acc);
        if (MOVE) UNROLL for (int i = 0; i < MR; i++) p[i]++;
    }
}

/* Whole vectors, or a whole half, and no residual: most tiles, whose short sums feel every instruction. */
INLINE bool is_plain(const bool HALF, const tile_args *t) { return t->lanes == (HALF ? LANES / 2 : LANES) && !t->residual; }

/* SERIES: outputs stand from `first` on, y_step apart. */
INLINE void tile_store(const int MR, const int NV, const bool HALF, const bool plain, const bool SERIES, const tile_args *t,
                       const int32_t *oy, int64_t first, vf acc[][NV_MAX])
{
    const vf lo = v_set1(t->lo), hi = v_set1(t->hi);
    const float *residual = t->residual;
    const int64_t step = t->y_step;
    const int lanes = !plain ? t->lanes : HALF ? LANES / 2 : LANES;
    float *y = t->y;
    UNROLL for (int i = 0; i < MR; i++) {
        const int64_t at = SERIES ? first + i * step : oy[i];
        UNROLL for (int v = 0; v < NV; v++) {
            const int n = v == NV - 1 ? lanes : LANES;
            vf a = acc[i][v];
            if (!plain && residual) a = v_add(a, v_load_n(residual + at + v * LANES, n));
            a = v_min(hi, v_max(lo, a));
            if (plain && n == LANES) v_store(y + at + v * LANES, a);
            else v_store_n(y + at + v * LANES, n, a);
        }
    }
}

/* A pixel's halves become vectors again. */
INLINE void tile_unfold(const int MR, vf acc[][NV_MAX])
{
    UNROLL for (int i = 1; i < MR; i += 2) acc[i][1] = v_swap(acc[i - 1][1]);
}

INLINE void tile_bias(const int MR, const int NV, const bool HALF, const tile_args *t, vf acc[][NV_MAX])
{
    vf start[NV_MAX];
    UNROLL for (int v = 0; v < NV; v++)
        start[v] = t->bias ? v_load_n(t->bias + v * LANES, v == NV - 1 ? t->lanes : LANES) : v_zero();
    if (HALF) start[1] = v_halves(start[1], v_swap(start[1]));
    UNROLL for (int i = 0; i < MR; i++)
        UNROLL for (int v = 0; v < NV; v++) acc[i][v] = start[v];
}

INLINE void tile_start(const int MR, const int NV, const bool HALF, const tile_args *t, vf acc[][NV_MAX])
{
    tile_bias(MR, NV, HALF, t, acc);
    if (t->resume)
        UNROLL for (int i = 0; i < MR; i++)
            UNROLL for (int v = 0; v < NV; v++)
                if (tile_sums(HALF, i, v)) acc[i][v] = v_load(t->sum + (i * NV + v) * LANES);
}

INLINE void tile_end(const int MR, const int NV, const bool HALF, const tile_args *t, vf acc[][NV_MAX])
{
    if (t->suspend) {
        float *sum = t->sum;
        UNROLL for (int i = 0; i < MR; i++)
            UNROLL for (int v = 0; v < NV; v++)
                if (tile_sums(HALF, i, v)) v_store(sum + (i * NV + v) * LANES, acc[i][v]);
        return;
    }
    if (HALF) tile_unfold(MR, acc);
    if (is_plain(HALF, t)) tile_store(MR, NV, HALF, true, false, t, t->oy, 0, acc);
    else tile_store(MR, NV, HALF, false, false, t, t->oy, 0, acc);
}

INLINE void tile_body(const int MR, const int NV, const bool HALF, const tile_args *t)
{
    const float *p[TILE_MAX];
    vf acc[TILE_MAX][NV_MAX];
    tile_start(MR, NV, HALF, t, acc);
    UNROLL for (int i = 0; i < MR; i++) p[i] = t->x + t->ox[i];
    for (int r = 0; r < t->runs; r++) {
        const float *w = t->w + t->run[r].w;
        int64_t c = t->run[r].x, end = c + t->len;
        if (NV > 1 && t->far) tile_stretch(MR, NV, HALF, true, false, p, c, end, w, t->pair, t->far, acc);
        else tile_stretch(MR, NV, HALF, false, false, p, c, end, w, t->pair, NULL, acc);
    }
    tile_end(MR, NV, HALF, t, acc);
}

/* Short sums: what a call costs, and to come by a pointer to each pixel, is a part of a tile's time. */
INLINE void series_tiles(const int MR, const int NV, const bool HALF, const bool plain, const tile_args *t)
{
    const int64_t x_step = t->x_step, x_next = MR * x_step - t->len, y_next = MR * t->y_step;
    const float *w = t->w + t->run->w, *p[TILE_MAX];
    int64_t at = t->oy[0];
    UNROLL for (int i = 0; i < MR; i++) p[i] = t->x + t->ox[0] + t->run->x + i * x_step;
    for (int k = t->tiles; k > 0; k--, at += y_next) {
        vf acc[TILE_MAX][NV_MAX];
        tile_bias(MR, NV, HALF, t, acc);
        if (t->far) tile_stretch(MR, NV, HALF, true, true, p, 0, t->len, w, t->pair, t->far, acc);
        else tile_stretch(MR, NV, HALF, false, true, p, 0, t->len, w, t->pair, NULL, acc);
        if (HALF) tile_unfold(MR, acc);
        tile_store(MR, NV, HALF, plain, true, t, NULL, at, acc);
        UNROLL for (int i = 0; i < MR; i++) p[i] += x_next;
    }
}

INLINE void series_body(const int MR, const int NV, const bool HALF, const tile_args *t)
{
    if (is_plain(HALF, t)) series_tiles(MR, NV, HALF, true, t);
    else series_tiles(MR, NV, HALF, false, t);
}

/* A series of one vector of out-channels: sums of even and of odd channels side by side. */
INLINE void twin_step(const int MR, const float *const *p, int64_t c, const float *w, vf acc[][NV_MAX])
{
    const vf b0 = v_load(w), b1 = v_load(w + LANES);
    UNROLL for (int i = 0; i < MR; i++) {
        const vf x = v_set2(p[i] + c);
        acc[i][0] = v_fma(x, b0, acc[i][0]);
        acc[i][1] = v_fma(x, b1, acc[i][1]);
    }
}

INLINE void twin_tiles(const int MR, const bool plain, const tile_args *t)
{
    const int64_t x_step = t->x_step, x_next = MR * x_step - t->len, y_next = MR * t->y_step;
    const vf bias = t->bias ? v_load_n(t->bias, t->lanes) : v_zero();
    const float *p[TILE_MAX];
    int64_t at = t->oy[0];
    UNROLL for (int i = 0; i < MR; i++) p[i] = t->x + t->ox[0] + t->run->x + i * x_step;
    for (int k = t->tiles; k > 0; k--, at += y_next) {
        const float *w = t->w + t->run->w;
        int left = t->len;
        vf acc[TILE_MAX][NV_MAX];
        UNROLL for (int i = 0; i < MR; i++) acc[i][0] = acc[i][1] = v_zero();
        for (; left >= 8; left -= 8, w += 8 * LANES) {
            UNROLL for (int u = 0; u < 4; u++) twin_step(MR, p, 2 * u, w + 2 * u * LANES, acc);
            UNROLL for (int i = 0; i < MR; i++) p[i] = at_held(p[i] + 8);
        }
        for (; left > 0; left -= 2, w += 2 * LANES) {
            twin_step(MR, p, 0, w, acc);
            UNROLL for (int i = 0; i < MR; i++) p[i] += 2;
        }
        UNROLL for (int i = 0; i < MR; i++)
            acc[i][0] = v_add(v_add(v_even(acc[i][0], acc[i][1]), v_odd(acc[i][0], acc[i][1])), bias);
        tile_store(MR, 1, false, plain, true, t, NULL, at, acc);
        UNROLL for (int i = 0; i < MR; i++) p[i] += x_next;
    }
}

INLINE void twin_body(const int MR, const tile_args *t)
{
    if (is_plain(false, t)) twin_tiles(MR, true, t);
    else twin_tiles(MR, false, t);
}

/* Of so many steps no loop is left: a stem's, three taps of three channels each, and a pixel's that is one line of memory, which
 * is fetched a tile ahead. */
enum { STEM_RUN = 9, LINE_RUN = 16 };
INLINE void list_runs(const int MR, const int RUN, const float **p, const tile_args *t, vf acc[][NV_MAX])
{
    for (const conv_run *r = t->run; r < t->run + t->runs; r++)
        if (RUN) UNROLL for (int u = 0; u < RUN; u++) tile_step(MR, 2, false, p, r->x + u, t->w + r->w + 2 * u * LANES, NULL, acc);
        else tile_stretch(MR, 2, false, false, false, p, r->x, r->x + t->len, t->w + r->w, 0, NULL, acc);
}

/* The same of any kernel: its pixels stand anywhere. */
INLINE void list_tiles(const int MR, const bool plain, const tile_args *t)
{
    const int32_t *ox = t->ox, *oy = t->oy;
    for (int k = t->tiles; k > 0; k--, ox += MR, oy += MR) {
        const float *p[TILE_MAX];
        vf acc[TILE_MAX][NV_MAX];
        tile_bias(MR, 2, false, t, acc);
        UNROLL for (int i = 0; i < MR; i++) p[i] = t->x + ox[i];
        if (t->len == LINE_RUN) {
            if (k > 1) UNROLL for (int i = 0; i < MR; i++) __builtin_prefetch(t->x + ox[MR + i]);
            list_runs(MR, LINE_RUN, p, t, acc);
        } else if (t->len == STEM_RUN) list_runs(MR, STEM_RUN, p, t, acc);
        else list_runs(MR, 0, p, t, acc);
        tile_store(MR, 2, false, plain, false, t, oy, 0, acc);
    }
}

INLINE void list_body(const int MR, const tile_args *t)
{
    if (is_plain(false, t)) list_tiles(MR, true, t);
    else list_tiles(MR, false, t);
}

/* Heights that fit the register file: the accumulators, NV vectors of weights, one broadcast. Pixels
 * want a pointer each, so one-vector tiles of pixels stay lower than those of in-channels, and halves in series, too. */
#define HEIGHTS_1(X) X(1, 1) X(2, 1) X(3, 1) X(4, 1) X(5, 1) X(6, 1) X(7, 1) X(8, 1)
#define HEIGHTS_2(X) X(1, 2) X(2, 2) X(3, 2) X(4, 2) X(5, 2)
#if defined(__AVX512F__)
#define TALLER_1(X) X(9, 1) X(10, 1) X(11, 1) X(12, 1)
#define MORE_1(X) TALLER_1(X) X(13, 1) X(14, 1) X(15, 1) X(16, 1)
#define MORE_2(X) X(6, 2) X(7, 2) X(8, 2) X(9, 2) X(10, 2) X(11, 2) X(12, 2) X(13, 2) X(14, 2)
enum { TALLEST_1 = 12, TALLEST_2 = 14, TALLEST_4 = 6, TALLEST_HALF = 8, SHORT_1 = 6, SHORT_2 = 7, SHORT_4 = 4, WTALLEST_1 = 16, WTALLEST_2 = 14, LONGEST_1 = 16, LONGEST_2 = 12 };
#define SERIES_2(X) HEIGHTS_2(X) X(6, 2) X(7, 2) X(8, 2)
#define TWINS(X) HEIGHTS_2(X) X(6, 2)
#define HEIGHTS_4(X) X(1, 4) X(2, 4) X(3, 4) X(4, 4) X(5, 4) X(6, 4)
#define STRIPS_1(X) HEIGHTS_1(X) MORE_1(X)
#define STRIPS_2(X) HEIGHTS_2(X) X(6, 2) X(7, 2) X(8, 2) X(9, 2) X(10, 2) X(11, 2) X(12, 2)
#elif defined(__AVX2__)
#define TALLER_1(X)
#define MORE_1(X)
#define MORE_2(X) X(6, 2)
#define SERIES_2(X) HEIGHTS_2(X) X(6, 2)
#define TWINS(X) SERIES_2(X)
enum { TALLEST_1 = 8, TALLEST_2 = 6, TALLEST_4 = 0, TALLEST_HALF = 6, SHORT_1 = 6, SHORT_2 = 6, SHORT_4 = 0, WTALLEST_1 = 8, WTALLEST_2 = 6, LONGEST_1 = 0, LONGEST_2 = 0 };
#define HEIGHTS_4(X)
#define STRIPS_1(X)
#define STRIPS_2(X)
#else
#define TALLER_1(X)
#define MORE_1(X)
#define MORE_2(X)
#define SERIES_2(X) HEIGHTS_2(X)
#define TWINS(X) SERIES_2(X)
enum { TALLEST_1 = 8, TALLEST_2 = 5, TALLEST_4 = 0, TALLEST_HALF = 5, SHORT_1 = 5, SHORT_2 = 5, SHORT_4 = 0, WTALLEST_1 = 8, WTALLEST_2 = 5, LONGEST_1 = 0, LONGEST_2 = 0 };
#define HEIGHTS_4(X)
#define STRIPS_1(X)
#define STRIPS_2(X)
#endif

#define X(MR, NV) static void tile_##MR##_##NV(const tile_args *t) { tile_body(MR, NV, false, t); }
HEIGHTS_1(X) TALLER_1(X) HEIGHTS_2(X) MORE_2(X) HEIGHTS_4(X)
#undef X
#define X(MR, NV) static void tile_half_##MR(const tile_args *t) { tile_body(MR, 2, true, t); }
HEIGHTS_2(X) MORE_2(X)
#undef X
#define X(MR, NV) static void series_##MR##_##NV(const tile_args *t) { series_body(MR, NV, false, t); }
SERIES_2(X) HEIGHTS_4(X)
#undef X
#define X(MR, NV) static void series_half_##MR(const tile_args *t) { series_body(MR, 2, true, t); }
SERIES_2(X)
#undef X
#define X(MR, NV) static void twin_##MR(const tile_args *t) { twin_body(MR, t); }
TWINS(X)
#undef X
#define X(MR, NV) static void list_##MR(const tile_args *t) { list_body(MR, t); }
SERIES_2(X)
#undef X
/* As many multiply-adds as the machine can do: `steps` times FMA_CHAINS independent ones. */
enum { FMA_CHAINS = 12 };
static double fma_spin(int64_t steps)
{
    vf a[FMA_CHAINS], x = v_set1(0.999999f), y = v_set1(1e-7f);
    UNROLL for (int i = 0; i < FMA_CHAINS; i++) a[i] = v_set1((float)i);
    for (; steps > 0; steps--)
        UNROLL for (int i = 0; i < FMA_CHAINS; i++) a[i] = v_fma(a[i], x, y);
    float sum[LANES];
    UNROLL for (int i = 1; i < FMA_CHAINS; i++) a[0] = v_add(a[0], a[i]);
    v_store(sum, a[0]);
    return (double)sum[0];
}

static void fill_conv(kern_table *k)
{
    k->fma_spin = fma_spin;
    k->fma_chains = FMA_CHAINS;
#define X(MR, NV) k->tile[NV / 2][MR] = tile_##MR##_##NV;
    HEIGHTS_1(X) TALLER_1(X) HEIGHTS_2(X) MORE_2(X) HEIGHTS_4(X)
#undef X
#define X(MR, NV) k->tile_half[MR] = tile_half_##MR;
    HEIGHTS_2(X) MORE_2(X)
#undef X
#define X(MR, NV) k->series[NV / 2][MR] = series_##MR##_##NV;
    SERIES_2(X) HEIGHTS_4(X)
#undef X
#define X(MR, NV) k->series_half[MR] = series_half_##MR;
    SERIES_2(X)
#undef X
#define X(MR, NV) k->series[0][MR] = twin_##MR;
    TWINS(X)
#undef X
#define X(MR, NV) k->list[MR] = list_##MR;
    SERIES_2(X)
#undef X
    k->tallest[0] = TALLEST_1;
    k->tallest[1] = TALLEST_2;
    k->tallest[2] = TALLEST_4;
    k->tallest_half = TALLEST_HALF;
    k->tallest_short[0] = SHORT_1;
    k->tallest_short[1] = SHORT_2;
    k->tallest_short[2] = SHORT_4;
}
