/* Dot products for kernels as large as their map: DOT_IMAGES images × DOT_OUTS out-channels, whose rows are read as
 * they lie. Rows beyond the last are the last one again, and their sums are dropped. */

#if defined(__AVX512F__)
enum { DOT_OUTS = 8 };
#else
enum { DOT_OUTS = 4 };                                  /* 16 registers */
#endif

INLINE void dot_step(const float *const *x, const float *const *w, int64_t k, int n, vf acc[][DOT_OUTS])
{
    vf b[DOT_OUTS];
    UNROLL for (int o = 0; o < DOT_OUTS; o++) b[o] = v_load_n(w[o] + k, n);
    UNROLL for (int i = 0; i < DOT_IMAGES; i++) {
        const vf v = v_load_n(x[i] + k, n);
        UNROLL for (int o = 0; o < DOT_OUTS; o++) acc[i][o] = v_fma(v, b[o], acc[i][o]);
    }
}

static void dot(const dot_args *a)
{
    const float *x[DOT_IMAGES], *w[DOT_OUTS];
    vf acc[DOT_IMAGES][DOT_OUTS];
    UNROLL for (int i = 0; i < DOT_IMAGES; i++) {
        x[i] = a->x + kern_min(i, a->images - 1) * a->step;
        UNROLL for (int o = 0; o < DOT_OUTS; o++) acc[i][o] = v_zero();
    }
    UNROLL for (int o = 0; o < DOT_OUTS; o++) w[o] = a->w + kern_min(o, a->outs - 1) * a->step;
    int64_t k = 0;
    for (; k + LANES <= a->count; k += LANES) dot_step(x, w, k, LANES, acc);
    if (k < a->count) dot_step(x, w, k, (int)(a->count - k), acc);
    for (int i = 0; i < a->images; i++)
        for (int o = 0; o < a->outs; o++) {
            float *sum = a->sum + i * a->sum_step + o;
            *sum = (a->add ? *sum : 0) + v_sum(acc[i][o]);
        }
}

static void fill_full(kern_table *k)
{
    k->dot = dot;
    k->dot_outs = DOT_OUTS;
}
