/* One kind of figure: series over two linear axes, 640×400. Colours are Okabe and Ito's (2008),
 * told apart by colour-blind readers too; each series also has its own marker. */
#include "core/io.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { WIDTH = 640, HEIGHT = 400, FONT = 12, TICKS = 6 };

static const char *const colours[] = { "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00",
                                       "#56b4e9", "#444444" };
enum { COLOURS = sizeof colours / sizeof *colours };

typedef struct { double lo, hi, step; } axis;
typedef struct { buf *out; axis x, y; double left, right, top, bottom; } figure;

/* ---- text --------------------------------------------------------------------------------- */

/* Characters XML 1.0 forbids are left out. */
static void put_escaped(buf *out, const char *s) {
    for (; s && *s; s++)
        switch (*s) {
        case '&': buf_puts(out, "&amp;"); break;
        case '<': buf_puts(out, "&lt;"); break;
        case '>': buf_puts(out, "&gt;"); break;
        case '"': buf_puts(out, "&quot;"); break;
        default:
            if ((unsigned char)*s >= 0x20 || *s == '\t') buf_put(out, s, 1);
        }
}

static void put_text(buf *out, double x, double y, const char *style, const char *text) {
    buf_printf(out, "<text x=\"%.1f\" y=\"%.1f\" %s>", x, y, style);
    put_escaped(out, text);
    buf_puts(out, "</text>\n");
}

/* Pixels, roughly: SVG cannot be asked how wide a font is. */
static double text_width(const char *s) {
    double n = 0;
    for (; s && *s; s++)
        n += (*s & 0xc0) != 0x80;               /* count UTF-8 characters, not bytes */
    return n * FONT * 0.56;
}

/* ---- axes --------------------------------------------------------------------------------- */

/* Neither NaN nor so large that differences overflow. */
static bool visible(const svg_series *s, int i) {
    return fabs(s->x[i]) < 1e300 && fabs(s->y[i]) < 1e300;
}

/* Steps of 1, 2 or 5 times a power of ten; the ends fall on ticks. */
static axis nice_axis(double lo, double hi) {
    if (lo > hi) lo = 0, hi = 1;
    if (hi - lo <= 1e-9 * fmax(fabs(lo), fabs(hi))) {
        double pad = lo == 0 ? 1 : fabs(lo) * 0.1;
        lo -= pad;
        hi += pad;
    }
    double rough = hi / TICKS - lo / TICKS, power = pow(10, floor(log10(rough)));
    if (!(power > 0)) return (axis){ 0, 1, 0.2 };   /* smaller than any real figure */
    double digit = rough / power;
    double step = (digit <= 1 ? 1 : digit <= 2 ? 2 : digit <= 5 ? 5 : 10) * power;
    return (axis){ floor(lo / step + 1e-6) * step, ceil(hi / step - 1e-6) * step, step };
}

static void fit_axes(const svg_plot *p, axis *x, axis *y) {
    double lo[2] = { HUGE_VAL, HUGE_VAL }, hi[2] = { -HUGE_VAL, -HUGE_VAL };
    for (int k = 0; k < p->n_series; k++)
        for (int i = 0; i < p->series[k].n; i++)
            if (visible(&p->series[k], i)) {
                lo[0] = fmin(lo[0], p->series[k].x[i]);
                hi[0] = fmax(hi[0], p->series[k].x[i]);
                lo[1] = fmin(lo[1], p->series[k].y[i]);
                hi[1] = fmax(hi[1], p->series[k].y[i]);
            }
    *x = nice_axis(lo[0], hi[0]);
    *y = nice_axis(lo[1], hi[1]);
}

static int tick_count(axis a) { return (int)lround((a.hi - a.lo) / a.step); }

/* The i-th tick as text, with the digits the step needs. */
static void tick_text(axis a, int i, char out[32]) {
    double v = a.lo + i * a.step;
    int digits = (int)fmax(0, -floor(log10(a.step) + 1e-9));
    if (fabs(v) < a.step / 2) v = 0;
    if (digits > 4 || fabs(v) >= 1e6) snprintf(out, 32, "%.6g", v);
    else snprintf(out, 32, "%.*f", digits, v);
}

static double at_x(const figure *f, double x) {
    return f->left + (x - f->x.lo) / (f->x.hi - f->x.lo) * (f->right - f->left);
}

static double at_y(const figure *f, double y) {
    return f->bottom - (y - f->y.lo) / (f->y.hi - f->y.lo) * (f->bottom - f->top);
}

static void draw_axes(const figure *f, const svg_plot *p) {
    char text[32];
    for (int i = 0; i <= tick_count(f->x); i++) {
        double x = at_x(f, f->x.lo + i * f->x.step);
        tick_text(f->x, i, text);
        buf_printf(f->out, "<path d=\"M%.1f %.1fV%.1f\" stroke=\"#e4e4e4\"/>\n", x, f->top,
                   f->bottom);
        put_text(f->out, x, f->bottom + 17, "text-anchor=\"middle\"", text);
    }
    for (int i = 0; i <= tick_count(f->y); i++) {
        double y = at_y(f, f->y.lo + i * f->y.step);
        tick_text(f->y, i, text);
        buf_printf(f->out, "<path d=\"M%.1f %.1fH%.1f\" stroke=\"#e4e4e4\"/>\n", f->left, y,
                   f->right);
        put_text(f->out, f->left - 7, y + 4, "text-anchor=\"end\"", text);
    }
    buf_printf(f->out, "<path d=\"M%.1f %.1fV%.1fH%.1f\" fill=\"none\" stroke=\"#333\"/>\n",
               f->left, f->top, f->bottom, f->right);
    double middle = (f->top + f->bottom) / 2;
    char turned[96];
    snprintf(turned, sizeof turned,
             "text-anchor=\"middle\" transform=\"rotate(-90 16 %.1f)\"", middle);
    put_text(f->out, 16, middle, turned, p->y_label);
    put_text(f->out, (f->left + f->right) / 2, HEIGHT - 12, "text-anchor=\"middle\"", p->x_label);
    put_text(f->out, (f->left + f->right) / 2, 24, "text-anchor=\"middle\" font-size=\"15\"",
             p->title);
}

/* ---- series ------------------------------------------------------------------------------- */

static void draw_marker(buf *out, int k, double x, double y) {
    const char *c = colours[k % COLOURS];
    if (k % 4 == 0) {
        buf_printf(out, "<circle cx=\"%.2f\" cy=\"%.2f\" r=\"3.5\" fill=\"%s\"/>\n", x, y, c);
        return;
    }
    static const struct { double dx, dy; const char *path; } shapes[4] = {
        {0}, { -3.2, -3.2, "h6.4v6.4h-6.4z" }, { 0, -4.2, "l4 7h-8z" },
        { 0, -4.4, "l4.4 4.4l-4.4 4.4l-4.4 -4.4z" },
    };
    buf_printf(out, "<path d=\"M%.2f %.2f%s\" fill=\"%s\"/>\n", x + shapes[k % 4].dx,
               y + shapes[k % 4].dy, shapes[k % 4].path, c);
}

/* A gap in the numbers is a gap in the line. */
static void draw_line(const figure *f, const svg_series *s, int k) {
    bool pen = false;
    buf_puts(f->out, "<path d=\"");
    for (int i = 0; i < s->n; i++) {
        bool seen = visible(s, i);
        if (seen)
            buf_printf(f->out, "%c%.2f %.2f", pen ? 'L' : 'M', at_x(f, s->x[i]), at_y(f, s->y[i]));
        pen = seen;
    }
    buf_printf(f->out, "\" fill=\"none\" stroke=\"%s\" stroke-width=\"1.8\""
               " stroke-linejoin=\"round\"/>\n", colours[k % COLOURS]);
}

static void draw_series(const figure *f, const svg_series *s, int k) {
    if (s->line) draw_line(f, s, k);
    for (int i = 0; i < s->n; i++) {
        if (!visible(s, i)) continue;
        double x = at_x(f, s->x[i]), y = at_y(f, s->y[i]);
        if (s->points) draw_marker(f->out, k, x, y);
        if (!s->label || !s->label[i]) continue;
        bool left = x + 8 + text_width(s->label[i]) > f->right;
        put_text(f->out, left ? x - 7 : x + 7, y - 5,
                 left ? "text-anchor=\"end\" font-size=\"11\"" : "font-size=\"11\"", s->label[i]);
    }
}

/* ---- legend ------------------------------------------------------------------------------- */

static int points_under(const figure *f, const svg_plot *p, double x, double y, double w,
                        double h) {
    int n = 0;
    for (int k = 0; k < p->n_series; k++)
        for (int i = 0; i < p->series[k].n; i++) {
            if (!visible(&p->series[k], i)) continue;
            double px = at_x(f, p->series[k].x[i]), py = at_y(f, p->series[k].y[i]);
            n += px > x - 6 && px < x + w + 6 && py > y - 6 && py < y + h + 6;
        }
    return n;
}

/* In the corner that hides the fewest points. */
static void draw_legend(const figure *f, const svg_plot *p) {
    double w = 0, h = 8;
    for (int k = 0; k < p->n_series; k++)
        if (p->series[k].name && *p->series[k].name) {
            w = fmax(w, 50 + text_width(p->series[k].name));
            h += 18;
        }
    if (w == 0) return;
    double x = 0, y = 0;
    for (int corner = 0, least = -1; corner < 4; corner++) {
        double cx = corner & 1 ? f->left + 8 : f->right - w - 8;
        double cy = corner & 2 ? f->bottom - h - 8 : f->top + 8;
        int n = points_under(f, p, cx, cy, w, h);
        if (least < 0 || n < least) least = n, x = cx, y = cy;
    }
    buf_printf(f->out, "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" rx=\"3\""
               " fill=\"#fff\" fill-opacity=\"0.85\" stroke=\"#ccc\"/>\n", x, y, w, h);
    for (int k = 0; k < p->n_series; k++) {
        const svg_series *s = &p->series[k];
        if (!s->name || !*s->name) continue;
        if (s->line)
            buf_printf(f->out, "<path d=\"M%.1f %.1fh24\" stroke=\"%s\" stroke-width=\"1.8\"/>\n",
                       x + 8, y + 13, colours[k % COLOURS]);
        if (s->points || !s->line) draw_marker(f->out, k, x + 20, y + 13);
        put_text(f->out, x + 38, y + 17, "", s->name);
        y += 18;
    }
}

void svg_draw(const svg_plot *p, buf *out) {
    figure f = { .out = out, .top = 40, .bottom = HEIGHT - 52, .right = WIDTH - 24 };
    char text[32];
    fit_axes(p, &f.x, &f.y);
    for (int i = 0; i <= tick_count(f.y); i++) {
        tick_text(f.y, i, text);
        f.left = fmax(f.left, 36 + text_width(text));
    }
    buf_printf(out, "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\""
               " viewBox=\"0 0 %d %d\" font-family=\"sans-serif\" font-size=\"%d\""
               " fill=\"#222\">\n",
               WIDTH, HEIGHT, WIDTH, HEIGHT, FONT);
    buf_printf(out, "<rect width=\"%d\" height=\"%d\" fill=\"#fff\"/>\n", WIDTH, HEIGHT);
    draw_axes(&f, p);
    for (int k = 0; k < p->n_series; k++)
        draw_series(&f, &p->series[k], k);
    draw_legend(&f, p);
    buf_puts(out, "</svg>\n");
}
