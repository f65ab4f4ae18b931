/* Depthwise convolution: T neighbouring outputs of one vector of channels in registers. A pixel is
 * loaded once for all taps of a chunk that read it. The 3×3 kernel of a tile that is full, alone or
 * at a padded side, has its branches folded away; of everything else, chunks that reach outside ask pixel by pixel. */

INLINE vf dw_load(const float *p, const bool full, int n) { return full ? v_load(p) : v_load_n(p, n); }

/* What a kernel does with its tiles; streamed outputs go past the caches. */
enum { DW_FORWARD, DW_STREAM, DW_WGRAD };

/* Of a tile: floats from the first one's x and y, and from its own to what is fetched by the way. */
typedef struct { int64_t x, y; const dw_ahead *ahead; } dw_place;

INLINE dw_place dw_tile_at(const dw_args *d, int line, int tile)
{
    return (dw_place){ line * d->x_line + tile * d->x_next, line * d->y_line + tile * d->y_next, &d->ahead[tile >= d->turn] };
}

/* The prologue of one vector of channels; nobody asks where there is none. */
typedef struct { vf scale, shift, lo, hi; } dw_pro;

INLINE dw_pro dw_prologue(const bool full, const dw_args *d, int c, int n)
{
    if (!d->scale) return (dw_pro){ 0 };
    return (dw_pro){ dw_load(d->scale + c, full, n), dw_load(d->shift + c, full, n), v_set1(d->in_lo), v_set1(d->in_hi) };
}

INLINE vf dw_pixel(const float *p, const bool full, int n, const dw_pro *in)
{
    vf v = dw_load(p, full, n);
    if (in) v = v_min(in->hi, v_max(in->lo, v_fma(v, in->scale, in->shift)));
    return v_held(v);
}

/* Odd multiples of a step, in bytes. An address takes the others from these, by a factor of 2, 4 or 8, and pixels from the
 * eighth on are counted from there: a register for every pixel of a row would be more than there are. */
enum { DW_ODD = 5 };
typedef struct { int64_t odd[DW_ODD]; } dw_steps;

INLINE dw_steps dw_steps_of(int64_t step)
{
    dw_steps s;
    UNROLL for (int k = 0; k < DW_ODD; k++) s.odd[k] = (2 * k + 1) * step * (int64_t)sizeof(float);
    return s;
}

INLINE dw_steps dw_steps_held(const dw_steps *s)
{
    dw_steps held;
    UNROLL for (int k = 0; k < DW_ODD; k++) held.odd[k] = step_held(s->odd[k]);
    return held;
}

/* Pixel j, up to 10. */
INLINE const float *dw_at(const float *x, int j, const dw_steps *s)
{
    if (j == 0) return x;
    const int twos = __builtin_ctz((unsigned)j);
    return (const float *)(const void *)((const char *)x + (s->odd[j >> twos >> 1] << twos));
}

/* Bits of the pixels that T outputs read through W taps. */
#define DW_PIXELS(T, S, W) ((1u << (((T) - 1) * (S) + (W))) - 1)

INLINE void dw_taps(const int T, const int S, const int W, const bool full, int n, const dw_pro *in, const float *x,
                    const dw_steps *x_step, const float *w, int64_t w_step, uint32_t live, vf *acc)
{
    const dw_steps step = dw_steps_held(x_step);
    const float *x8 = at_held(dw_at(x, 8, &step));
    vf tap[CHUNK_TAPS];
    UNROLL for (int b = 0; b < W; b++) tap[b] = dw_load(w + b * w_step, full, n);
    UNROLL for (int j = 0; j < (T - 1) * S + W; j++) {
        if (!(live >> j & 1)) continue;
        vf v = dw_pixel(dw_at(j < 8 ? x : x8, j < 8 ? j : j - 8, &step), full, n, in);
        UNROLL for (int b = 0; b < W; b++)
            if (j >= b && (j - b) % S == 0 && (j - b) / S < T) acc[(j - b) / S] = v_fma(v, tap[b], acc[(j - b) / S]);
    }
}

/* All rows of a chunk before the next chunk: to ask in every row how many taps there are cost as much as the taps. */
INLINE void dw_rows(const int T, const int S, const int W, const bool full, int n, const dw_pro *in, const dw_args *d, const float *x,
                    const dw_steps *x_step, const float *w, uint32_t live, vf *acc)
{
    const int64_t x_row = d->x_row, w_row = d->w_row, w_step = d->w_step;
    for (int a = d->rows; a > 0; a--, x += x_row, w += w_row) dw_taps(T, S, W, full, n, in, x, x_step, w, w_step, live, acc);
}

/* Pixels that are all inside are not asked for, one by one. */
INLINE void dw_chunk_rows(const int T, const int S, const int W, const dw_pro *in, const dw_args *d, const float *x,
                          const dw_steps *x_step, const float *w, uint32_t live, vf *acc)
{
    if (live == DW_PIXELS(T, S, W)) dw_rows(T, S, W, true, LANES, in, d, x, x_step, w, DW_PIXELS(T, S, W), acc);
    else dw_rows(T, S, W, true, LANES, in, d, x, x_step, w, live, acc);
}

INLINE void dw_chunk_taps(const int T, const int S, const bool full, int n, const dw_pro *in, const dw_args *d, const float *x,
                          const dw_steps *x_step, const float *w, const dw_chunk *k, vf *acc)
{
    if (!full) {
        for (int b = 0; b < k->taps; b++)
            dw_rows(T, S, 1, full, n, in, d, dw_at(x, b, x_step), x_step, w + b * d->w_step, k->live >> b, acc);
        return;
    }
    switch (k->taps) {
    case 1: dw_chunk_rows(T, S, 1, in, d, x, x_step, w, k->live, acc); break;
    case 2: dw_chunk_rows(T, S, 2, in, d, x, x_step, w, k->live, acc); break;
    case 3: dw_chunk_rows(T, S, 3, in, d, x, x_step, w, k->live, acc); break;
    case 4: dw_chunk_rows(T, S, 4, in, d, x, x_step, w, k->live, acc); break;
    default: dw_chunk_rows(T, S, 5, in, d, x, x_step, w, k->live, acc); break;
    }
}

INLINE void dw_store(const int kind, const int T, const bool full, const dw_args *d, int64_t at, int n, int count, vf *acc)
{
    const vf lo = v_set1(d->lo), hi = v_set1(d->hi);
    const dw_steps from = dw_steps_of(d->y_step), step = dw_steps_held(&from);
    const float *residual = d->residual;
    float *y = d->y + at;
    if (residual) UNROLL for (int t = 0; t < T; t++)
        if (t < count) acc[t] = v_add(acc[t], dw_load(dw_at(residual + at, t, &step), full, n));
    UNROLL for (int t = 0; t < T; t++) {
        if (t >= count) continue;
        vf v = v_min(hi, v_max(lo, acc[t]));
        if (full && kind == DW_STREAM) v_stream((float *)dw_at(y, t, &step), v);
        else if (full) v_store((float *)dw_at(y, t, &step), v);
        else v_store_n((float *)dw_at(y, t, &step), n, v);
    }
}

/* What tiles to come will want, before it is wanted: memory is too far to be waited for. Of all channels, those [c, …) fetch
 * their share in the order of memory, as tile_stretch does. */
INLINE void dw_fetch(const int kind, const int T, const int S, const dw_args *d, const dw_ahead *ahead, const float *x, const float *out, int c)
{
    const bool whole = d->channels == d->x_step && d->channels == d->y_step;
    const int64_t x_step = whole ? LANES : d->x_step, y_step = whole ? LANES : d->y_step;
    x += d->at + ahead->x + (whole ? c * (T * S - 1) : 0);
    for (int a = d->rows - d->fetched; a < d->rows; a++)
        UNROLL for (int j = 0; j < T * S; j++) __builtin_prefetch(x + a * d->x_row + j * x_step);
    if (kind == DW_STREAM) return;
    out += ahead->y + (whole ? c * (T - 1) : 0);
    UNROLL for (int t = 0; t < T; t++)
        if (kind == DW_FORWARD) __builtin_prefetch(out + t * y_step, 1);           /* clang wants to see a constant */
        else __builtin_prefetch(out + t * y_step);
}

/* W = 3: three rows of one chunk of three taps, of whose pixels live are inside, for a full tile. W = 0: any.
 * What is full or has a prologue is compiled apart; so little is, the rows being a loop and vectors that are not full
 * taken tap by tap, because all other loops together compile in a quarter of the time that these take. */
INLINE void dw_vector(const int kind, const int T, const int S, const int W, const uint32_t live, const bool full, const bool prologue,
                      const dw_args *d, dw_place at, int c, int n)
{
    const int64_t w_step = d->w_step, x_row = d->x_row, w_row = d->w_row;
    const dw_steps x_step = dw_steps_of(d->x_step);
    const float *x = d->x + at.x + c, *w = d->w + c;
    const dw_pro own = dw_prologue(full, d, c, n), *in = prologue ? &own : NULL;
    if (d->fetched) dw_fetch(kind, T, S, d, at.ahead, x, d->y + at.y + c, c);
    vf acc[8], start = d->bias ? dw_load(d->bias + c, full, n) : v_zero();
    UNROLL for (int t = 0; t < T; t++) acc[t] = start;
    if (W) for (int a = 0; a < 3; a++)
        dw_taps(T, S, W, full, n, in, x + d->at + a * x_row, &x_step, w + a * w_row, w_step, live, acc);
    else for (const dw_chunk *k = d->chunk; k < d->chunk + d->chunks; k++)
        dw_chunk_taps(T, S, full, n, in, d, x + k->x, &x_step, w + k->w * w_step, k, acc);
    dw_store(kind, T, full, d, at.y + c, n, W ? T : d->count, acc);
}

/* Weight gradient of one chunk. Two sums per tap, for even and odd outputs: one alone would wait for itself. */
INLINE void dw_wgrad_taps(const int T, const int S, const int W, const bool full, int n, const dw_pro *in,
                          const float *x, const dw_steps *x_step, const vf *g, float *sum, int64_t sum_step, uint32_t live)
{
    const dw_steps step = dw_steps_held(x_step);
    const float *x8 = at_held(dw_at(x, 8, &step));
    vf acc[CHUNK_TAPS][2];
    UNROLL for (int b = 0; b < W; b++) {
        acc[b][0] = v_load(sum + b * sum_step);
        acc[b][1] = v_zero();
    }
    UNROLL for (int j = 0; j < (T - 1) * S + W; j++) {
        if (!(live >> j & 1)) continue;
        vf v = dw_pixel(dw_at(j < 8 ? x : x8, j < 8 ? j : j - 8, &step), full, n, in);
        UNROLL for (int b = 0; b < W; b++) {
            int t = (j - b) / S;
            if (j >= b && (j - b) % S == 0 && t < T) acc[b][t % 2] = v_fma(v, g[t], acc[b][t % 2]);
        }
    }
    UNROLL for (int b = 0; b < W; b++) v_store(sum + b * sum_step, v_add(acc[b][0], acc[b][1]));
}

INLINE void dw_wgrad_rows(const int T, const int S, const int W, const bool full, int n, const dw_pro *in, const dw_args *d,
                          const float *x, const dw_steps *x_step, const vf *g, float *sum, uint32_t live)
{
    const int64_t x_row = d->x_row, w_row = d->w_row, w_step = d->w_step;
    for (int a = d->rows; a > 0; a--, x += x_row, sum += w_row) dw_wgrad_taps(T, S, W, full, n, in, x, x_step, g, sum, w_step, live);
}

INLINE void dw_wgrad_chunk_rows(const int T, const int S, const int W, const dw_pro *in, const dw_args *d, const float *x,
                                const dw_steps *x_step, const vf *g, float *sum, uint32_t live)
{
    if (live == DW_PIXELS(T, S, W)) dw_wgrad_rows(T, S, W, true, LANES, in, d, x, x_step, g, sum, DW_PIXELS(T, S, W));
    else dw_wgrad_rows(T, S, W, true, LANES, in, d, x, x_step, g, sum, live);
}

INLINE void dw_wgrad_chunk(const int T, const int S, const bool full, int n, const dw_pro *in, const dw_args *d, const float *x,
                           const dw_steps *x_step, const vf *g, float *sum, const dw_chunk *k)
{
    if (!full) {
        for (int b = 0; b < k->taps; b++)
            dw_wgrad_rows(T, S, 1, full, n, in, d, dw_at(x, b, x_step), x_step, g, sum + b * d->w_step, k->live >> b);
        return;
    }
    switch (k->taps) {
    case 1: dw_wgrad_chunk_rows(T, S, 1, in, d, x, x_step, g, sum, k->live); break;
    case 2: dw_wgrad_chunk_rows(T, S, 2, in, d, x, x_step, g, sum, k->live); break;
    case 3: dw_wgrad_chunk_rows(T, S, 3, in, d, x, x_step, g, sum, k->live); break;
    case 4: dw_wgrad_chunk_rows(T, S, 4, in, d, x, x_step, g, sum, k->live); break;
    default: dw_wgrad_chunk_rows(T, S, 5, in, d, x, x_step, g, sum, k->live); break;
    }
}

INLINE void dw_wgrad_vector(const int T, const int S, const int W, const uint32_t live, const bool full, const bool prologue,
                            const dw_args *d, dw_place at, int c, int n)
{
    const int64_t w_step = d->w_step, x_row = d->x_row, w_row = d->w_row;
    const dw_steps x_step = dw_steps_of(d->x_step);
    const float *x = d->x + at.x + c, *dy = d->dy + at.y + c;
    float *sum = d->sum + c;
    const dw_pro own = dw_prologue(full, d, c, n), *in = prologue ? &own : NULL;
    if (d->fetched) dw_fetch(DW_WGRAD, T, S, d, at.ahead, x, dy, c);
    vf g[8];
    UNROLL for (int t = 0; t < T; t++) g[t] = W || t < d->count ? dw_load(dy + t * d->y_step, full, n) : v_zero();
    if (W) for (int a = 0; a < 3; a++)
        dw_wgrad_taps(T, S, W, full, n, in, x + d->at + a * x_row, &x_step, g, sum + a * w_row, w_step, live);
    else for (const dw_chunk *k = d->chunk; k < d->chunk + d->chunks; k++)
        dw_wgrad_chunk(T, S, full, n, in, d, x + k->x, &x_step, g, sum + k->w * w_step, k);
}

/* One vector of the forward pass or of the weight gradient. */
INLINE void dw_either(const int kind, const int T, const int S, const int W, const uint32_t live, const bool full,
                      const bool prologue, const dw_args *d, dw_place at, int c, int n)
{
    if (kind == DW_WGRAD) dw_wgrad_vector(T, S, W, live, full, prologue, d, at, c, n);
    else dw_vector(kind, T, S, W, live, full, prologue, d, at, c, n);
}

/* Line after line: neighbours are read on from one another, and a line's pixels are still near when the next wants them. */
INLINE int dw_inside(const int kind, const int T, const int S, const uint32_t live, const bool prologue, const dw_args *d)
{
    int c = 0;
    for (int line = 0; line < d->lines; line++)
        for (int tile = 0; tile < d->tiles; tile++) {
            const dw_place at = dw_tile_at(d, line, tile);
            for (c = 0; c + LANES <= d->channels; c += LANES) dw_either(kind, T, S, 3, live, true, prologue, d, at, c, LANES);
        }
    return c;
}

/* The channels that fill vectors of full tiles of three rows and one chunk of three taps, alone or at a padded
 * side; says how many they are, 0 of any other tiles. */
INLINE int dw_three(const int kind, const int T, const int S, const bool prologue, const dw_args *d)
{
    if (d->rows != 3 || d->chunks != 1 || d->chunk->taps != 3 || d->count != T) return 0;
    const uint32_t all = DW_PIXELS(T, S, 3), live = d->chunk->live;
    if (live == all) return dw_inside(kind, T, S, all, prologue, d);
    if (live == (all & ~1u)) return dw_inside(kind, T, S, all & ~1u, prologue, d);
    if (live == all >> 1) return dw_inside(kind, T, S, all >> 1, prologue, d);
    if (live == (all >> 1 & ~1u)) return dw_inside(kind, T, S, all >> 1 & ~1u, prologue, d);
    return 0;
}

/* Channels from c on, of any tile. */
INLINE int dw_any(const int kind, const int T, const int S, const bool prologue, const dw_args *d, dw_place at, int c)
{
    for (; c + LANES <= d->channels; c += LANES) dw_either(kind, T, S, 0, 0, true, prologue, d, at, c, LANES);
    return c;
}

/* Apart from the tiles inside, whose registers it would take. */
#define KERNELS(NAME, KIND, T, S) \
    static __attribute__((noinline)) void NAME##_any_##T##_##S(const dw_args *d, int c) \
    { \
        OWN(d); \
        for (int line = 0; line < d->lines; line++) \
            for (int tile = 0; tile < d->tiles; tile++) { \
                const dw_place at = dw_tile_at(d, line, tile); \
                int done = d->scale ? dw_any(KIND, T, S, true, d, at, c) : dw_any(KIND, T, S, false, d, at, c); \
                if (done < d->channels) dw_either(KIND, T, S, 0, 0, false, d->scale != NULL, d, at, done, d->channels - done); \
            } \
    } \
    static void NAME##_##T##_##S(const dw_args *d) \
    { \
        OWN(d); \
        int done = d->scale ? dw_three(KIND, T, S, true, d) : dw_three(KIND, T, S, false, d); \
        if (done < d->channels) NAME##_any_##T##_##S(d, done); \
    }
#define WIDTHS(X) X(0, 4, 1) X(0, 4, 2) X(1, 7, 1) X(1, 7, 2) X(2, 8, 1) X(2, 8, 2)
#define X(I, T, S) KERNELS(dw, DW_FORWARD, T, S) KERNELS(dw_wgrad, DW_WGRAD, T, S)
WIDTHS(X)
#undef X

/* Without a prologue; what is not inside passes through the caches as ever. */
#define X(I, T, S) \
    static void dw_stream_##T##_##S(const dw_args *d) \
    { \
        OWN(d); \
        int done = dw_three(DW_STREAM, T, S, false, d); \
        if (done < d->channels) dw_any_##T##_##S(d, done); \
    }
WIDTHS(X)
#undef X

static void fill_dw(kern_table *k)
{
#define X(I, T, S) k->dw[I][S - 1] = dw_##T##_##S; k->dw_wgrad[I][S - 1] = dw_wgrad_##T##_##S;
    WIDTHS(X)
#undef X
#define X(I, T, S) k->dw_stream[I][S - 1] = dw_stream_##T##_##S;
    WIDTHS(X)
#undef X
}
