/* Convolutions that follow each other, run together on bands of rows.
 *
 * A step of a plan writes its whole output before the next one reads it: of an expanded map of 56×56×144
 * two megabytes, through memory and back. Here a few rows go through all links while they are in the
 * cache (Alwani et al., Fused-layer CNN accelerators, MICRO 2016), and only the last link's output is ever
 * whole. A link that reads more rows than it steps over finds those it shares with the band before moved to
 * the front of its buffer; nothing is computed twice but where pieces meet, which is where threads do.
 *
 * What each link does for each band is settled when the plan is made: a list of moves. Every output is
 * summed in the order of the link's own plan, so the bits are the same. */
#include <assert.h>
#include <string.h>

#include "core/kern/conv.h"

/* Rows [r0, r1) of what `link` puts out: rows of the buffer that are moved to its front, what is read, and
 * where the rest goes. In floats; of the first link's input and the last one's output from the image's start. */
typedef struct { int link; const conv_plan *plan; int64_t kept_at, kept, from, read, to; } move;

typedef struct { int link, h, pt, pb; conv_plan *plan; } kind;        /* of rows that a link is given */

struct conv_bands {
    conv_shape s[CONV_BANDS_MAX];
    int n;
    int pieces;                  /* of an image: rows that one task takes, band after band */
    int rows;                    /* of a band, in the last link's output */
    kind *kind; int n_kind;
    move *move; int n_move;
    int *first;                  /* moves of piece i: first[i] … first[i+1]-1 */
    int64_t buffer[CONV_BANDS_MAX + 1];       /* of level k, what link k reads: floats from a worker's scratch; [n]: all */
    int64_t most[CONV_BANDS_MAX];             /* floats that level k holds at once */
    size_t own;                  /* scratch of one worker */
};

/* ---- rows --------------------------------------------------------------------------------------- */

typedef struct { int first, end; } span;

static span reads(const conv_shape *s, span out)
{
    int last = (out.end - 1) * s->sh - s->pt + (s->kh - 1) * s->dh + 1;
    return (span){ (int)kern_max(0, out.first * s->sh - s->pt), (int)kern_min(s->h, last) };
}

static int64_t row_in(const conv_shape *s) { return (int64_t)s->w * s->c; }
static int64_t row_out(const conv_shape *s) { return (int64_t)conv_out_w(s) * s->o; }

/* What levels 0 … n hold when the last link puts out rows [q0, q1). */
static void find_spans(const conv_bands *b, span out, span *level)
{
    level[b->n] = out;
    for (int k = b->n - 1; k >= 0; k--) level[k] = reads(&b->s[k], level[k + 1]);
}

/* Rows of a link's input, at most, that so many of its output read. */
static int64_t rows_read(const conv_shape *s, int64_t rows) { return kern_min(s->h, (rows - 1) * s->sh + (s->kh - 1) * s->dh + 1); }

/* Floats of the levels between, while bands of so many rows go through. */
static int64_t room_for(const conv_bands *b, int rows)
{
    int64_t sum = 0, need = rows;
    for (int k = b->n - 1; k > 0; k--) {
        const conv_shape *s = &b->s[k];
        need = rows_read(s, need);
        sum += need * row_in(s);
    }
    return sum;
}

/* ---- how they are cut, and whether that wins ------------------------------------------------------ */

/* A map of more than a quarter of the second-level cache is worth bands, or, where every thread has many images and so none
 * reads what another wrote, of a thirty-second. Their rows may fill half of it, with the weights, which every band reads
 * again, three quarters. */
static int64_t cache_floats(void) { return (int64_t)(core_l2_bytes() / sizeof(float)); }

enum { MANY_IMAGES = 8 };
static bool is_large(const conv_shape *s)
{
    return s->h * row_in(s) > cache_floats() / (s->n < MANY_IMAGES * par_threads() ? 4 : 32);
}

enum { LEAST_ROWS = 2, TALLEST = 7 };

static bool has_room(const conv_bands *b, int rows)
{
    int64_t weights = 0;
    for (int k = 0; k < b->n; k++) weights += (int64_t)b->s[k].o * (b->s[k].c / b->s[k].groups) * b->s[k].kh * b->s[k].kw;
    return 2 * room_for(b, rows) <= cache_floats() && 4 * (room_for(b, rows) + weights) <= 3 * cache_floats();
}

/* Do so many tasks leave threads with nothing to do for more than an eighth of the time? */
static bool uneven(int64_t tasks)
{
    const int64_t places = kern_div_up(tasks, par_threads()) * par_threads();
    return 8 * (places - tasks) > places;
}

/* As few pieces as keep the threads busy, for what they share is computed twice; bands as high as the cache
 * allows, of about equal size. Returns the rows of a piece. */
static int cut(conv_bands *b, int most)
{
    const conv_shape *end = &b->s[b->n - 1];
    const int all = conv_out_h(end);
    for (b->pieces = 1; uneven((int64_t)b->pieces * end->n) && b->pieces * LEAST_ROWS < all;) b->pieces++;
    const int rows = (int)kern_div_up(all, b->pieces);
    b->pieces = (int)kern_div_up(all, rows);
    if (!most) for (most = LEAST_ROWS; most < rows && has_room(b, most + 1);) most++;
    b->rows = (int)kern_div_up(rows, kern_div_up(rows, most));
    return rows;
}

/* Where pieces of `rows` meet, rows are made twice: of any level more than a quarter? */
static bool repeats(const conv_bands *b, int rows)
{
    int64_t need = rows;
    for (int k = b->n - 1; k > 0; k--) {
        need = rows_read(&b->s[k], need);
        if (4 * need * b->pieces > 5 * (int64_t)b->s[k].h) return true;
    }
    return false;
}

/* Small depthwise kernels, dense 1×1 ones, and those that step over rows, as stems do: never Winograd's, and sums too
 * short to be cut. */
static bool fits(const conv_shape *s)
{
    const bool low = s->kh <= TALLEST && s->dh == 1;
    const bool dense = s->groups == 1 && (is_one(s) || (low && s->sh > 1)) && !tile_is_long((int64_t)s->kh * s->kw * s->c);
    return (dense || (is_depthwise(s) && low)) && s->pt < s->kh && s->pb < s->kh;
}

/* Does link k, not the first, read less than the link before reads and than it puts out itself? There a whole map costs
 * least, and the links on either side have higher bands than all together would. */
static bool is_waist(const conv_shape *s, int k)
{
    const int64_t in = s[k].h * row_in(&s[k]);
    return in < s[k - 1].h * row_in(&s[k - 1]) && in < conv_out_h(&s[k]) * row_out(&s[k]);
}

bool conv_bands_win(const conv_shape *s, int n)
{
    conv_bands b = { .n = n };
    if (n < 2 || n > CONV_BANDS_MAX || strcmp(conv_road(), "direct")) return false;
    for (int k = 0; k < n; k++) {
        if (!fits(&s[k])) return false;
        if (k && (!is_large(&s[k]) || is_waist(s, k))) return false;
        b.s[k] = s[k];
    }
    if (!has_room(&b, LEAST_ROWS)) return false;
    const int rows = cut(&b, 0);
    return !uneven((int64_t)b.pieces * s->n) && !repeats(&b, rows);
}

/* ---- planning ----------------------------------------------------------------------------------- */

/* The plan of a link that reads rows `in` for rows `out`. */
static const conv_plan *plan_for(conv_bands *b, int link, span in, span out, err *e)
{
    conv_shape s = b->s[link];
    const int above = in.first - (out.first * s.sh - s.pt);
    const int below = (out.end - 1) * s.sh - s.pt + (s.kh - 1) * s.dh + 1 - in.end;
    s.n = 1, s.h = in.end - in.first, s.pt = above, s.pb = below;
    for (const kind *k = b->kind; k < b->kind + b->n_kind; k++)
        if (k->link == link && k->h == s.h && k->pt == above && k->pb == below) return k->plan;
    conv_plan *p = conv_plan_new(&s, CONV_FORWARD | CONV_INSIDE, e);
    if (p) b->kind[b->n_kind++] = (kind){ link, s.h, above, below, p };
    return p;
}

/* Level k+1, which has rows `have`, is to have rows `want` of it. */
static bool add_move(conv_bands *b, int k, const span *level, span *have, err *e)
{
    const span want = level[k + 1], kept = { want.first, (int)kern_max(want.first, have[k + 1].end) };
    const span out = { kept.end, want.end };
    const bool last = k == b->n - 1;
    const bool more = out.first < out.end;
    const span in = more ? reads(&b->s[k], out) : level[k];
    const conv_plan *plan = more ? plan_for(b, k, in, out, e) : NULL;
    if (more && !plan) return false;
    b->move[b->n_move++] = (move){
        .link = k, .plan = plan,
        .kept_at = last ? 0 : (kept.first - have[k + 1].first) * row_out(&b->s[k]),
        .kept = last ? 0 : (kept.end - kept.first) * row_out(&b->s[k]),
        .from = (in.first - (k ? level[k].first : 0)) * row_in(&b->s[k]), .read = (in.end - in.first) * row_in(&b->s[k]),
        .to = (out.first - (last ? 0 : want.first)) * row_out(&b->s[k]) };
    have[k + 1] = want;
    if (!last) b->most[k + 1] = kern_max(b->most[k + 1], (want.end - want.first) * row_out(&b->s[k]));
    return true;
}

static bool add_piece(conv_bands *b, span out, err *e)
{
    span have[CONV_BANDS_MAX + 1] = { { 0, 0 } }, level[CONV_BANDS_MAX + 1];
    for (int q = out.first; q < out.end; q += b->rows) {
        find_spans(b, (span){ q, (int)kern_min(out.end, q + b->rows) }, level);
        for (int k = 0; k < b->n; k++)
            if (!add_move(b, k, level, have, e)) return false;
    }
    return true;
}

static bool fill(conv_bands *b, err *e)
{
    const int all = conv_out_h(&b->s[b->n - 1]), rows = (int)kern_div_up(all, b->pieces);
    const size_t most = (size_t)(b->pieces * kern_div_up(rows, b->rows) * b->n);        /* moves, and kinds */
    b->first = mem_new((size_t)b->pieces + 1, sizeof *b->first, e);
    b->move = mem_new(most, sizeof *b->move, e);
    b->kind = mem_new(most, sizeof *b->kind, e);
    if (!b->first || !b->move || !b->kind) return false;
    for (int i = 0; i < b->pieces; i++) {
        if (!add_piece(b, (span){ i * rows, (int)kern_min(all, (i + 1) * rows) }, e)) return false;
        b->first[i + 1] = b->n_move;
    }
    int64_t at = 0;
    for (int k = 1; k < b->n; k++) {
        b->buffer[k] = at;
        at += kern_div_up(b->most[k], 16) * 16;
    }
    b->buffer[b->n] = at;
    for (int i = 0; i < b->n_kind; i++)
        b->own = (size_t)kern_max((int64_t)b->own, (int64_t)conv_scratch_floats(b->kind[i].plan));
    b->own = scratch_of_worker((size_t)at + b->own);
    return true;
}

conv_bands *conv_bands_new(const conv_shape *s, int n, int rows, err *e)
{
    assert(n >= 2 && n <= CONV_BANDS_MAX);
    for (int k = 0; k < n; k++) assert(fits(&s[k]) && (!k || (s[k].h == conv_out_h(&s[k - 1]) && row_in(&s[k]) == row_out(&s[k - 1]))));
    conv_bands *b = mem_new(1, sizeof *b, e);
    if (!b) return NULL;
    memcpy(b->s, s, (size_t)n * sizeof *s);
    b->n = n;
    cut(b, rows);
    if (!fill(b, e)) { conv_bands_free(b); return NULL; }
    return b;
}

void conv_bands_free(conv_bands *b)
{
    if (!b) return;
    for (int i = 0; i < b->n_kind; i++) conv_plan_free(b->kind[i].plan);
    mem_free(b->kind);
    mem_free(b->move);
    mem_free(b->first);
    mem_free(b);
}

size_t conv_bands_scratch_floats(const conv_bands *b) { return b->own * (size_t)par_threads(); }

/* ---- running ------------------------------------------------------------------------------------ */

typedef struct {
    const conv_bands *b;
    const float *x;
    const conv_link *link;
    float *y, *scratch;
    int64_t *ns;
} job;

/* Inside a task the links' own loops are serial, see par_for. next: of the first link, in the band that follows, or NULL. */
static void make(const job *j, const move *m, const move *next, const float *x, float *y, float *own, int64_t image_y)
{
    const conv_bands *b = j->b;
    const bool last = m->link == b->n - 1;
    float *to = last ? y : own + b->buffer[m->link + 1];
    if (m->kept && m->kept_at) memmove(to, to + m->kept_at, (size_t)m->kept * sizeof *to);
    if (!m->plan) return;
    conv_epilogue ep = j->link[m->link].ep;
    if (ep.residual) ep.residual += image_y + m->to;
    if (next && next->plan) {
        const int64_t end = next->from + next->read, from = kern_min(end, kern_max(next->from, m->from + m->read));
        ep.next = x + from;
        ep.n_next = end - from;
    }
    conv_forward(m->plan, (m->link ? own + b->buffer[m->link] : x) + m->from, NULL, j->link[m->link].packed, &ep, to + m->to,
                 own + b->buffer[b->n]);
}

static void run_piece(void *ctx, int64_t i, int worker)
{
    const job *j = ctx;
    const conv_bands *b = j->b;
    const conv_shape *first = &b->s[0], *last = &b->s[b->n - 1];
    const int64_t image = i / b->pieces, piece = i % b->pieces, at = image * conv_out_h(last) * row_out(last);
    const float *x = j->x + image * first->h * row_in(first);
    float *own = j->scratch + b->own * (size_t)worker;
    const move *end = b->move + b->first[piece + 1];
    for (const move *m = b->move + b->first[piece]; m < end; m++) {
        const int64_t start = j->ns ? clock_ns() : 0;
        make(j, m, m->link == 0 && m + b->n < end ? m + b->n : NULL, x, j->y + at, own, at);
        if (j->ns) __atomic_fetch_add(&j->ns[m->link], clock_ns() - start, __ATOMIC_RELAXED);
    }
}

void conv_bands_forward(const conv_bands *b, const float *x, const conv_link *link, float *y, float *scratch, int64_t *ns)
{
    job j = { b, x, link, y, scratch, ns };
    par_for((int64_t)b->s[0].n * b->pieces, run_piece, &j);
}
