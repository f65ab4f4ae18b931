/* Forward and data gradient as gathers, see conv.h. */
#include "core/kern/conv.h"

/* One axis of one phase: output rows first, first+stride … below size; their taps. */
typedef struct { int first, count, taps, *offset, *place; } axis;

static axis axis_forward(int out, int taps, int dilation, int pad, int *offset, int *place)
{
    for (int t = 0; t < taps; t++) {
        offset[t] = t * dilation - pad;
        place[t] = t;
    }
    return (axis){ 0, out, taps, offset, place };
}

/* dx row h gets dy row (h + pad - t*dilation) / stride from every tap t that divides. */
static axis axis_phase(int phase, int size, int taps, int stride, int dilation, int pad, int *offset, int *place)
{
    axis a = { phase, size > phase ? (size - phase + stride - 1) / stride : 0, 0, offset, place };
    for (int t = taps - 1; t >= 0; t--) {
        int at = phase + pad - t * dilation;
        if (at % stride) continue;
        offset[a.taps] = at / stride;
        place[a.taps++] = t;
    }
    return a;
}

static bool gather_new(gather *g, const conv_shape *s, conv_pass pass, int phase_h, int phase_w, err *e)
{
    bool fwd = pass == CONV_FORWARD;
    int OH = conv_out_h(s), OW = conv_out_w(s), *mem = mem_new(2 * ((size_t)s->kh + (size_t)s->kw), sizeof *mem, e);
    if (!mem) return false;
    int *row = mem, *kr = row + s->kh, *col = kr + s->kh, *kc = col + s->kw;
    axis v = fwd ? axis_forward(OH, s->kh, s->dh, s->pt, row, kr)
                 : axis_phase(phase_h, s->h, s->kh, s->sh, s->dh, s->pt, row, kr);
    axis h = fwd ? axis_forward(OW, s->kw, s->dw, s->pl, col, kc)
                 : axis_phase(phase_w, s->w, s->kw, s->sw, s->dw, s->pl, col, kc);
    int cg = s->c / s->groups, og = s->o / s->groups;
    int64_t channels = fwd ? s->o : s->c, width = fwd ? OW : s->w, height = fwd ? OH : s->h;
    int step_h = fwd ? 1 : s->sh, step_w = fwd ? 1 : s->sw;
    *g = (gather){
        .n = s->n, .ih = fwd ? s->h : OH, .iw = fwd ? s->w : OW, .qh = v.count, .qw = h.count,
        .y_img = height * width * channels, .y_row = step_h * width * channels, .y_col = step_w * channels,
        .y_base = (v.first * width + h.first) * channels,
        .groups = s->groups, .c = fwd ? cg : og, .o = fwd ? og : cg,
        .sh = fwd ? s->sh : 1, .sw = fwd ? s->sw : 1,
        .th = v.taps, .tw = h.taps, .row = row, .col = col, .kr = kr, .kc = kc, .transposed = !fwd };
    return true;
}

int gathers_new(const conv_shape *s, conv_pass pass, gather *g, err *e)
{
    int n = 0, phases_h = pass == CONV_FORWARD ? 1 : s->sh, phases_w = pass == CONV_FORWARD ? 1 : s->sw;
    for (int i = 0; i < phases_h; i++)
        for (int j = 0; j < phases_w; j++) {
            if (pass != CONV_FORWARD && (i >= s->h || j >= s->w)) continue;
            if (!gather_new(&g[n], s, pass, i, j, e)) { gathers_free(g, n); return 0; }
            n++;
        }
    return n;
}

void gathers_free(gather *g, int n)
{
    for (int i = 0; i < n; i++) mem_free(g[i].row);
}

int64_t gather_weight(const gather *g, const conv_shape *s, int group, int o, int c, int a, int b)
{
    int64_t og = s->o / s->groups, cg = s->c / s->groups;
    int64_t out = group * og + (g->transposed ? c : o), in = g->transposed ? o : c;
    return ((out * cg + in) * s->kh + g->kr[a]) * s->kw + g->kc[b];
}

void taps_live(const int *offset, int taps, int q0, int q1, int stride, int size, int *t0, int *t1)
{
    *t0 = 0;
    *t1 = taps;
    while (*t0 < *t1 && q1 * stride + offset[*t0] < 0) ++*t0;
    while (*t1 > *t0 && q0 * stride + offset[*t1 - 1] >= size) --*t1;
}
