/* Winograd's transforms of an image patch and of an output tile, LANES channels at a time (Lavin and
 * Gray 2016, "Fast algorithms for convolutional neural networks"). A tile of M×M outputs of a 3×3
 * kernel is A'((G g G') · (B' d B))A of a patch d of (M+2)×(M+2) pixels. Row i of B', column i of
 * A' belong to one interpolation point: 0, 1, -1, infinity for M = 2 and 0, P, -P, Q, -Q, infinity
 * for M = 4. G's numbers are in winograd.c. */

enum { WINO_MOST = 6 };

/* t = B' d along one line of a patch. */
INLINE void wino_in_line(const int M, const vf *d, const int step, vf *t)
{
    if (M == 2) {
        t[0] = v_sub(d[2 * step], d[0]);
        t[1] = v_add(d[2 * step], d[step]);
        t[2] = v_sub(d[2 * step], d[step]);
        t[3] = v_sub(d[3 * step], d[step]);
        return;
    }
    const vf p = v_set1(WINO_P), q = v_set1(WINO_Q), pp = v_set1(-WINO_P * WINO_P), qq = v_set1(-WINO_Q * WINO_Q);
    const vf sum = v_set1(-WINO_P * WINO_P - WINO_Q * WINO_Q), product = v_set1(WINO_P * WINO_P * WINO_Q * WINO_Q);
    vf even_p = v_fma(qq, d[2 * step], d[4 * step]), odd_p = v_mul(p, v_fma(qq, d[step], d[3 * step]));
    vf even_q = v_fma(pp, d[2 * step], d[4 * step]), odd_q = v_mul(q, v_fma(pp, d[step], d[3 * step]));
    t[0] = v_fma(product, d[0], v_fma(sum, d[2 * step], d[4 * step]));
    t[1] = v_add(even_p, odd_p);
    t[2] = v_sub(even_p, odd_p);
    t[3] = v_add(even_q, odd_q);
    t[4] = v_sub(even_q, odd_q);
    t[5] = v_fma(product, d[step], v_fma(sum, d[3 * step], d[5 * step]));
}

/* y = A' m along one line. */
INLINE void wino_out_line(const int M, const vf *m, const int step, vf *y)
{
    vf s1 = v_add(m[step], m[2 * step]), e1 = v_sub(m[step], m[2 * step]);
    if (M == 2) {
        y[0] = v_add(m[0], s1);
        y[1] = v_add(m[3 * step], e1);
        return;
    }
    const vf p = v_set1(WINO_P), q = v_set1(WINO_Q), pp = v_set1(WINO_P * WINO_P), qq = v_set1(WINO_Q * WINO_Q);
    vf s2 = v_add(m[3 * step], m[4 * step]), e2 = v_sub(m[3 * step], m[4 * step]);
    e1 = v_mul(p, e1);
    e2 = v_mul(q, e2);
    y[0] = v_add(m[0], v_add(s1, s2));
    y[1] = v_add(e1, e2);
    y[2] = v_fma(pp, s1, v_mul(qq, s2));
    y[3] = v_add(m[5 * step], v_fma(pp, e1, v_mul(qq, e2)));
}

/* M×M pixels that a later tile will want. */
INLINE void wino_fetch(const int M, const bool written, const float *p, int64_t row, int64_t col)
{
    UNROLL for (int r = 0; r < M; r++)
        UNROLL for (int k = 0; k < M; k++)
            if (written) __builtin_prefetch(p + r * row + k * col, 1, 2);
            else __builtin_prefetch(p + r * row + k * col, 0, 2);
}

/* n channels of a patch; `whole`: every pixel lies inside the image, every lane holds a channel. */
INLINE void wino_in_vector(const int M, const bool whole, const wino_in_args *a, int c, int n)
{
    const int A = M + 2;
    vf half[WINO_MOST * WINO_MOST], d[WINO_MOST], t[WINO_MOST];
    if (a->ahead) wino_fetch(M, false, a->x + a->ahead + c, a->x_row, a->x_col);
    for (int k = 0; k < A; k++) {                       /* column k, all rows */
        const float *x = a->x + k * a->x_col + c;
        bool column = whole || (k >= a->c0 && k < a->c1);
        UNROLL for (int r = 0; r < A; r++)
            d[r] = whole ? v_load(x + r * a->x_row)
                 : column && r >= a->r0 && r < a->r1 ? v_load_n(x + r * a->x_row, n) : v_zero();
        wino_in_line(M, d, 1, t);
        UNROLL for (int r = 0; r < A; r++) half[r * A + k] = t[r];
    }
    const int64_t plane = a->plane;
    float *v = a->v + c;
    for (int r = 0; r < A; r++, v += A * plane) {
        wino_in_line(M, half + r * A, 1, t);
        UNROLL for (int k = 0; k < A; k++) v_store(v + k * plane, t[k]);
    }
}

INLINE void wino_in_body(const int M, const wino_in_args *a)
{
    int c = 0;
    bool inside = a->r0 == 0 && a->c0 == 0 && a->r1 == M + 2 && a->c1 == M + 2;
    if (inside)
        for (; c + LANES <= a->channels; c += LANES) wino_in_vector(M, true, a, c, LANES);
    for (; c < a->channels; c += LANES) wino_in_vector(M, false, a, c, (int)kern_min(LANES, a->channels - c));
}

INLINE void wino_out_vector(const int M, const wino_out_args *a, const int v, int n)
{
    const int A = M + 2;
    vf half[4 * WINO_MOST], line[WINO_MOST], t[4];
    const float *m = a->m + v * LANES;
    if (a->ahead) wino_fetch(M, true, a->y + a->ahead + v * LANES, a->y_row, a->y_col);
    for (int k = 0; k < A; k++) {
        UNROLL for (int r = 0; r < A; r++) line[r] = v_load(m + (r * A + k) * a->plane);
        wino_out_line(M, line, 1, t);
        UNROLL for (int r = 0; r < M; r++) half[r * A + k] = t[r];
    }
    vf bias = a->bias ? v_load_n(a->bias + v * LANES, n) : v_zero(), lo = v_set1(a->lo), hi = v_set1(a->hi);
    const int64_t row = a->y_row, col = a->y_col;
    const int rows = a->rows, cols = a->cols;
    const float *residual = a->residual ? a->residual + v * LANES : NULL;
    float *y = a->y + v * LANES;
    for (int r = 0; r < rows; r++) {
        wino_out_line(M, half + r * A, 1, t);
        UNROLL for (int k = 0; k < M; k++) {
            if (k >= cols) break;
            vf sum = v_add(t[k], bias);
            if (residual) sum = v_add(sum, v_load_n(residual + r * row + k * col, n));
            v_store_n(y + r * row + k * col, n, v_min(hi, v_max(lo, sum)));
        }
    }
}

INLINE void wino_out_body(const int M, const wino_out_args *a)
{
    for (int v = 0; v < a->nv; v++) wino_out_vector(M, a, v, v == a->nv - 1 ? a->lanes : LANES);
}

/* One kernel to a lane: the compiler makes vectors of the loops over o. */
static void wino_w(const wino_w_args *a)
{
    double t[3][WIDEST];
    for (int r = 0; r < a->A; r++) {
        const double *G = a->G[r];
        for (int k = 0; k < 3; k++)
            for (int o = 0; o < WIDEST; o++)
                t[k][o] = G[0] * (double)a->g[k * WIDEST + o] + G[1] * (double)a->g[(3 + k) * WIDEST + o] + G[2] * (double)a->g[(6 + k) * WIDEST + o];
        for (int b = 0; b < a->A; b++) {
            const double *H = a->G[b];
            float row[WIDEST];
            for (int o = 0; o < WIDEST; o++) row[o] = (float)(H[0] * t[0][o] + H[1] * t[1][o] + H[2] * t[2][o]);
            memcpy(a->u + (r * a->A + b) * a->plane, row, (size_t)a->wide * sizeof *row);
        }
    }
}

/* t = A y along one line of an output tile: the transpose of wino_out_line. */
INLINE void wino_dy_line(const int M, const vf *y, vf *t)
{
    t[0] = y[0];
    t[M + 1] = y[M - 1];
    if (M == 2) {
        t[1] = v_add(y[0], y[1]);
        t[2] = v_sub(y[0], y[1]);
        return;
    }
    const vf p = v_set1(WINO_P), q = v_set1(WINO_Q), pp = v_set1(WINO_P * WINO_P), qq = v_set1(WINO_Q * WINO_Q);
    vf even_p = v_fma(pp, y[2], y[0]), odd_p = v_mul(p, v_fma(pp, y[3], y[1]));
    vf even_q = v_fma(qq, y[2], y[0]), odd_q = v_mul(q, v_fma(qq, y[3], y[1]));
    t[1] = v_add(even_p, odd_p);
    t[2] = v_sub(even_p, odd_p);
    t[3] = v_add(even_q, odd_q);
    t[4] = v_sub(even_q, odd_q);
}

/* whole: as wino_in_vector. */
INLINE void wino_dy_vector(const int M, const bool whole, const wino_in_args *a, int c, int n)
{
    const int A = M + 2;
    vf half[WINO_MOST * 4], y[4], t[WINO_MOST];
    if (a->ahead) wino_fetch(M, false, a->x + a->ahead + c, a->x_row, a->x_col);
    for (int k = 0; k < M; k++) {                       /* column k, all rows */
        const float *x = a->x + k * a->x_col + c;
        UNROLL for (int r = 0; r < M; r++)
            y[r] = whole ? v_load(x + r * a->x_row) : k < a->c1 && r < a->r1 ? v_load_n(x + r * a->x_row, n) : v_zero();
        wino_dy_line(M, y, t);
        UNROLL for (int r = 0; r < A; r++) half[r * M + k] = t[r];
    }
    const int64_t plane = a->plane;
    float *v = a->v + c;
    for (int r = 0; r < A; r++, v += A * plane) {
        wino_dy_line(M, half + r * M, t);
        UNROLL for (int k = 0; k < A; k++) v_store(v + k * plane, t[k]);
    }
}

INLINE void wino_dy_body(const int M, const wino_in_args *a)
{
    int c = 0;
    if (a->r1 == M && a->c1 == M)
        for (; c + LANES <= a->channels; c += LANES) wino_dy_vector(M, true, a, c, LANES);
    for (; c < a->channels; c += LANES) wino_dy_vector(M, false, a, c, (int)kern_min(LANES, a->channels - c));
}

INLINE void wino_dw_body(const int M, const wino_dw_args *a)
{
    const int A = M + 2;
    for (int v = 0; v < a->nv; v++) {
        const float *m = a->m + v * LANES;
        vf half[3 * WINO_MOST];
        for (int k = 0; k < A; k++)
            UNROLL for (int t = 0; t < 3; t++) {
                vf sum = v_zero();
                UNROLL for (int r = 0; r < A; r++) sum = v_fma(v_set1(a->G[r][t]), v_load(m + (r * A + k) * a->plane), sum);
                half[t * A + k] = sum;
            }
        for (int t = 0; t < 9; t++) {
            vf sum = v_zero();
            UNROLL for (int k = 0; k < A; k++) sum = v_fma(v_set1(a->G[k][t % 3]), half[t / 3 * A + k], sum);
            v_store(a->out + t * a->step + v * LANES, sum);
        }
    }
}

static void wino_dy_2(const wino_in_args *a) { wino_dy_body(2, a); }
static void wino_dy_4(const wino_in_args *a) { wino_dy_body(4, a); }
static void wino_dw_2(const wino_dw_args *a) { wino_dw_body(2, a); }
static void wino_dw_4(const wino_dw_args *a) { wino_dw_body(4, a); }
static void wino_in_2(const wino_in_args *a) { wino_in_body(2, a); }
static void wino_in_4(const wino_in_args *a) { wino_in_body(4, a); }
static void wino_out_2(const wino_out_args *a) { wino_out_body(2, a); }
static void wino_out_4(const wino_out_args *a) { wino_out_body(4, a); }

static void fill_wino(kern_table *k)
{
    k->wino_in[0] = wino_in_2;
    k->wino_in[1] = wino_in_4;
    k->wino_out[0] = wino_out_2;
    k->wino_out[1] = wino_out_4;
    k->wino_w = wino_w;
    k->wino_dy[0] = wino_dy_2;
    k->wino_dy[1] = wino_dy_4;
    k->wino_dw[0] = wino_dw_2;
    k->wino_dw[1] = wino_dw_4;
}
