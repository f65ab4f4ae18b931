/* layermerge data: look at a set before training on it.
 *   make     write a set as class folders of PNG, or a contact sheet of its first images
 *   pack     write a set as shards of decoded images, which are mapped instead of decoded
 *   verify   decode every image; exit code 1 when some cannot be
 *   stats    counts, sizes, the mean and standard deviation of each channel, and how fast it went */
#include "core/cli.h"
#include "data/data.h"

#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

typedef struct {
    const char *data, *split, *out, *sheet, *bad, *size;
    int64_t limit, resize, shard_mb;
} data_cli;

static const cli_option options[] = {
    { "data", CLI_TEXT, offsetof(data_cli, data), NULL, NULL,
      "folder or builtin:shapes[,…]; may also follow the word" },
    { "split", CLI_CHOICE, offsetof(data_cli, split), "both", "both|train|val", "which part" },
    { "limit", CLI_INT, offsetof(data_cli, limit), "0", "0:",
      "class-balanced subset of this many images; 0: all" },
    { "out", CLI_TEXT, offsetof(data_cli, out), NULL, NULL,
      "make: folder for train/<class>/… and val/<class>/…; pack: folder of the shards" },
    { "sheet", CLI_TEXT, offsetof(data_cli, sheet), NULL, NULL,
      "make: PNG of the first images, one class per column" },
    { "resize", CLI_INT, offsetof(data_cli, resize), "0", "0:16384",
      "pack: shorter side of the images; 0: as they are" },
    { "shard-mb", CLI_INT, offsetof(data_cli, shard_mb), "64", "1:4096", "pack: size of a shard" },
    { "size", CLI_TEXT, offsetof(data_cli, size), NULL, NULL,
      "side of the images a network gets: N or H,W" },
    CLI_BAD_IMAGES(data_cli),
};

typedef struct { const char *name; data_set *set; } split;

/* The splits asked for; of "both" one may be missing. */
static bool open_splits(const data_cli *o, const char *from, uint64_t seed, split out[2], int *n,
                        err *e) {
    static const char *const name[2] = { "train", "val" };
    data_options how = { .limit = o->limit, .fail_on_bad = !strcmp(o->bad, "fail"), .seed = seed };
    bool both = !strcmp(o->split, "both"), absent = false;
    how.absent = &absent;
    *n = 0;
    if (!data_size_parse(&how, o->size, e)) return false;
    for (int i = 0; i < 2; i++) {
        if (!both && strcmp(o->split, name[i])) continue;
        err mine = { 0 };
        data_set *s = data_open(from, name[i], &how, &mine);
        if (s) out[(*n)++] = (split){ name[i], s };
        else if (!both || !absent)
            return err_set(e, mine.code, "%s", mine.msg);
    }
    return true;
}

/* ---- every image once, on all threads -------------------------------------------------------- */

/* Sums of pixel values are whole numbers: adding them in any order gives the same. */
typedef struct {
    int64_t good, pixels, min_h, max_h, min_w, max_w, grey;
    double sum[3], square[3];
} tally;

enum { CHUNK = 64 };
typedef struct { const data_set *set; tally *part; int64_t from; } survey;   /* from: first chunk */

static void add_image(tally *t, const data_image *im) {
    uint64_t sum[3] = { 0 }, square[3] = { 0 };
    int64_t n = (int64_t)im->h * im->w;
    const uint8_t *p = im->x;
    for (int64_t i = 0; i < n; i++, p += im->c)
        for (int c = 0; c < 3; c++) {
            unsigned v = p[im->c == 3 ? c : 0];
            sum[c] += v, square[c] += v * v;
        }
    for (int c = 0; c < 3; c++) t->sum[c] += (double)sum[c], t->square[c] += (double)square[c];
    if (!t->good || im->h < t->min_h) t->min_h = im->h;
    if (!t->good || im->w < t->min_w) t->min_w = im->w;
    if (im->h > t->max_h) t->max_h = im->h;
    if (im->w > t->max_w) t->max_w = im->w;
    t->good++;
    t->pixels += n;
    t->grey += im->c == 1;
}

static void survey_chunk(void *ctx, int64_t i, int worker) {
    const survey *s = ctx;
    (void)worker;
    i += s->from;
    int64_t last = (i + 1) * CHUNK < data_count(s->set) ? (i + 1) * CHUNK : data_count(s->set);
    for (int64_t k = i * CHUNK; k < last; k++) {
        data_image im;
        if (!data_decode(s->set, k, &im, NULL)) continue;
        add_image(&s->part[i], &im);
        image_free(&im);
    }
}

static void join(tally *t, const tally *p) {
    if (!p->good) return;
    if (!t->good || p->min_h < t->min_h) t->min_h = p->min_h;
    if (!t->good || p->min_w < t->min_w) t->min_w = p->min_w;
    if (p->max_h > t->max_h) t->max_h = p->max_h;
    if (p->max_w > t->max_w) t->max_w = p->max_w;
    t->good += p->good;
    t->pixels += p->pixels;
    t->grey += p->grey;
    for (int c = 0; c < 3; c++) t->sum[c] += p->sum[c], t->square[c] += p->square[c];
}

static bool look_at_all(const data_set *set, bool quiet, tally *t, err *e) {
    int64_t n = data_count(set), chunks = (n + CHUNK - 1) / CHUNK;
    survey s = { .set = set, .part = mem_new((size_t)chunks, sizeof(tally), e) };
    if (!s.part) return false;
    cli_progress bar = cli_progress_start("images", n, quiet);
    const int64_t step = 16;                   /* chunks between two looks at the progress */
    for (; s.from < chunks && !stop_requested(); s.from += step) {
        par_for(chunks - s.from < step ? chunks - s.from : step, survey_chunk, &s);
        cli_progress_at(&bar, (s.from + step) * CHUNK < n ? (s.from + step) * CHUNK : n, NULL);
    }
    cli_progress_end(&bar);
    for (int64_t i = 0; i < chunks; i++) join(t, &s.part[i]);
    mem_free(s.part);
    return !stop_requested() || err_set(e, ERR_STOPPED, "stopped before every image was looked at");
}

/* ---- verify and stats ------------------------------------------------------------------------ */

static void put_bad(json_writer *w, const data_set *s, const int64_t *bad, int64_t n) {
    json_begin(w, "bad", '[');
    for (int64_t i = 0; i < n; i++) json_text(w, NULL, data_name(s, bad[i]));
    json_end(w, ']');
}

static void put_channels(json_writer *w, const tally *t) {
    int channels = t->grey == t->good ? 1 : 3;
    for (int which = 0; which < 2; which++) {
        json_begin(w, which ? "std" : "mean", '[');
        for (int c = 0; c < channels && t->pixels; c++) {
            double n = (double)t->pixels, mean = t->sum[c] / n;
            json_number(w, NULL,
                        (which ? sqrt(fmax(0, t->square[c] / n - mean * mean)) : mean) / 255);
        }
        json_end(w, ']');
    }
}

static void put_classes(json_writer *w, const data_set *s) {
    json_begin(w, "images_per_class", '{');
    for (int c = 0; c < data_classes(s); c++) {
        int64_t n = 0;
        for (int64_t i = 0; i < data_count(s); i++) n += data_label(s, i) == c;
        json_int(w, data_class_name(s, c), n);
    }
    json_end(w, '}');
}

/* One split as a member of the report; *bad counts the images that cannot be decoded. */
static bool put_split(json_writer *w, const split *p, bool stats, bool quiet, int64_t *bad,
                      err *e) {
    tally t = { 0 };
    int64_t start_ns = clock_ns();
    if (!look_at_all(p->set, quiet, &t, e)) return false;
    double seconds = (double)(clock_ns() - start_ns) * 1e-9;
    int64_t n = data_bad(p->set, NULL, 0), *index = mem_new((size_t)n, sizeof *index, e);
    if (!index) return false;
    data_bad(p->set, index, n);
    json_begin(w, p->name, '{');
    json_int(w, "images", data_count(p->set));
    json_int(w, "classes", data_classes(p->set));
    if (stats) {
        const char *const key[4] = { "min_height", "max_height", "min_width", "max_width" };
        const int64_t value[4] = { t.min_h, t.max_h, t.min_w, t.max_w };
        for (int i = 0; i < 4; i++) json_int(w, key[i], value[i]);
        json_int(w, "grey", t.grey);
        put_channels(w, &t);
        put_classes(w, p->set);
        char text[256];
        data_prep prep = data_default_prep(p->set);
        data_prep_print(&prep, text);
        json_text(w, "preprocessing", text);
        json_number(w, "images_per_s", round((double)t.good / seconds));
        json_int(w, "threads", par_threads());
    }
    put_bad(w, p->set, index, n);
    json_end(w, '}');
    *bad += n;
    mem_free(index);
    return true;
}

static bool print_json(buf *out, const cli_common *common, err *e) {
    if (out->failed) return err_set(e, ERR_NOMEM, "no memory for the report");
    printf("%s%s", out->data, common->json ? "\n" : "");
    return true;
}

static bool report(const data_cli *o, const char *from, const cli_common *common, const split *p,
                   int n, bool stats, err *e) {
    buf out = { 0 };
    json_writer w = json_writer_on(&out, !common->json);
    int64_t bad = 0;
    bool ok = true;
    json_begin(&w, NULL, '{');
    json_text(&w, "data", from);
    for (int i = 0; ok && i < n; i++)
        ok = put_split(&w, &p[i], stats, common->quiet || common->json, &bad, e);
    json_bool(&w, "ok", bad == 0);
    json_end(&w, '}');
    ok = ok && print_json(&out, common, e);
    buf_free(&out);
    if (ok && bad && (!stats || !strcmp(o->bad, "fail")))
        ok = err_set(e, stats ? ERR_DATA : ERR_NEGATIVE, "%s: %lld images cannot be decoded", from,
                     (long long)bad);
    return ok;
}

/* ---- what is not finished -------------------------------------------------------------------- */

/* A file beside the results, from before the first until after the last, holds the command: what lies
 * there meanwhile is its own, and only the same command may go on. */
static bool unfinished_path(char out[4096], const data_cli *o, err *e) {
    return snprintf(out, 4096, "%s/unfinished.txt", o->out) < 4096
        || err_set(e, ERR_USAGE, "--out %s: the path is too long", o->out);
}

static bool take_over(const char *path, const buf *mine, err *e) {
    buf theirs = { 0 };
    bool ok = file_read(path, &theirs, e);
    if (ok && (theirs.len != mine->len || memcmp(theirs.data, mine->data, mine->len)))
        ok = err_set(e, ERR_USAGE, "%s: \"%.*s\" was not finished; run it again or remove the folder", path,
                     (int)strcspn(theirs.data, "\n"), theirs.data);
    buf_free(&theirs);
    return ok;
}

static bool folder_may_write(const data_cli *o, const char *split_name, err *e) {
    char path[4096];
    if (snprintf(path, sizeof path, "%s/%s", o->out, split_name) >= (int)sizeof path)
        return err_set(e, ERR_USAGE, "--out %s: the path is too long", o->out);
    return !file_exists(path)
        || err_set(e, ERR_USAGE, "%s is there already; a set is not written over, remove it or choose another --out",
                   path);
}

static bool begin(const data_cli *o, const char *word, const char *from, int64_t seed, const split *p,
                  int n, err *e) {
    bool packs = !strcmp(word, "pack");
    char path[4096];
    if (file_same(from, o->out))
        return err_set(e, ERR_USAGE, "--out %s is the set that is read; choose another folder", o->out);
    buf mine = { 0 };
    buf_printf(&mine, "data %s %s --split %s --limit %lld --seed %lld\n", word, from, o->split,
               (long long)o->limit, (long long)seed);
    bool ok = (!mine.failed || err_set(e, ERR_NOMEM, "out of memory"))
           && unfinished_path(path, o, e) && file_make_dirs(o->out, e);
    if (ok && file_exists(path)) {
        ok = take_over(path, &mine, e);
        for (int i = 0; ok && packs && i < n; i++) data_pack_discard(p[i].name, o->out);
    } else {
        for (int i = 0; ok && i < n; i++)
            ok = packs ? data_pack_may_write(p[i].name, o->out, e) : folder_may_write(o, p[i].name, e);
        ok = ok && file_write(path, mine.data, mine.len, e);
    }
    buf_free(&mine);
    return ok;
}

static void finish(const data_cli *o) {
    char path[4096];
    err none = { 0 };
    if (unfinished_path(path, o, &none)) unlink(path);
}

/* ---- make ------------------------------------------------------------------------------------ */

/* A class name as a folder: no slashes, no leading dot. */
static void folder_name(char out[256], const char *name) {
    snprintf(out, 256, "%s", name);
    for (char *c = out; *c; c++)
        if (*c == '/' || (c == out && *c == '.') || iscntrl((unsigned char)*c)) *c = '_';
}

/* Images that cannot be had are left out, unless the options say that they end it. */
static bool leave_out(const data_cli *o, const err *why) {
    return why->code != ERR_NOMEM && !strcmp(o->bad, "skip");
}

static bool write_image(const data_cli *o, const split *p, int64_t i, int64_t *written, err *e) {
    char dir[4096], path[4200], name[256];
    data_image im;
    err mine = { 0 };
    folder_name(name, data_class_name(p->set, data_label(p->set, i)));
    if (snprintf(dir, sizeof dir, "%s/%s/%s", o->out, p->name, name) >= (int)sizeof dir)
        return err_set(e, ERR_USAGE, "--out %s: the path is too long", o->out);
    snprintf(path, sizeof path, "%s/%07lld.png", dir, (long long)i);
    if (!data_decode(p->set, i, &im, &mine))
        return leave_out(o, &mine) || err_set(e, mine.code, "%s", mine.msg);
    bool ok = file_make_dirs(dir, e) && image_write_png(path, &im, e);
    image_free(&im);
    *written += ok;
    return ok;
}

static bool write_folders(const data_cli *o, const split *p, bool quiet, int64_t *written, err *e) {
    cli_progress bar = cli_progress_start(p->name, data_count(p->set), quiet);
    bool ok = true;
    *written = 0;
    for (int64_t i = 0; ok && i < data_count(p->set); i++) {
        ok = write_image(o, p, i, written, e);
        if (ok && stop_requested())
            ok = err_set(e, ERR_STOPPED, "stopped after %lld images", (long long)i + 1);
        cli_progress_at(&bar, i + 1, NULL);
    }
    cli_progress_end(&bar);
    return ok;
}

enum { SHEET_ROWS = 12, SHEET_COLUMNS = 16, SHEET_GAP = 2 };

/* One column per class (the first sixteen), one row per image of it. */
static bool write_sheet(const data_cli *o, const data_set *s, err *e) {
    data_prep p = data_default_prep(s);
    int columns = data_classes(s) < SHEET_COLUMNS ? data_classes(s) : SHEET_COLUMNS,
        have[SHEET_COLUMNS] = { 0 };
    int h = p.h + SHEET_GAP, w = p.w + SHEET_GAP;
    data_image sheet = { SHEET_ROWS * h, columns * w, 3, NULL };
    if (!(sheet.x = mem_new((size_t)sheet.h * (size_t)sheet.w, 3, e))) return false;
    bool ok = true;
    for (int64_t i = 0; ok && i < data_count(s); i++) {
        int c = data_label(s, i);
        if (c >= columns || have[c] == SHEET_ROWS) continue;
        data_image im, fit;
        err mine = { 0 };
        if (!data_decode(s, i, &im, &mine)) {
            ok = leave_out(o, &mine) || err_set(e, mine.code, "%s", mine.msg);
            continue;
        }
        if ((ok = image_resize(&im, 0, 0, im.w, im.h, p.h, p.w, &fit, e))) {
            for (int y = 0; y < p.h; y++)
                for (int x = 0; x < p.w; x++)
                    for (int k = 0; k < 3; k++)
                        sheet.x[((have[c] * h + y) * sheet.w + c * w + x) * 3 + k] =
                            fit.x[(y * p.w + x) * fit.c + (fit.c == 3 ? k : 0)];
            image_free(&fit);
        }
        image_free(&im);
        have[c]++;
    }
    ok = ok && image_write_png(o->sheet, &sheet, e);
    image_free(&sheet);
    return ok;
}

static void tell_bad(const cli_common *common, const data_set *s) {
    buf b = { 0 };
    if (!common->quiet && data_bad_text(s, &b) && !b.failed) fprintf(stderr, "%s\n", b.data);
    buf_free(&b);
}

static bool make(const data_cli *o, const char *from, const cli_common *common, const split *p, int n,
                 err *e) {
    if (!o->out && !o->sheet)
        return err_set(e, ERR_USAGE, "data make wants --out DIR or --sheet FILE.png");
    if (o->out && !begin(o, "make", from, common->seed, p, n, e)) return false;
    if (o->sheet && !write_sheet(o, p[0].set, e)) return false;
    buf out = { 0 };
    json_writer w = json_writer_on(&out, !common->json);
    json_begin(&w, NULL, '{');
    bool ok = true;
    for (int i = 0; ok && o->out && i < n; i++) {
        int64_t written;
        ok = write_folders(o, &p[i], common->quiet || common->json, &written, e);
        json_int(&w, p[i].name, written);
        if (ok) tell_bad(common, p[i].set);
    }
    if (ok && o->out) finish(o);
    if (o->out) json_text(&w, "out", o->out);
    if (o->sheet) json_text(&w, "sheet", o->sheet);
    json_end(&w, '}');
    ok = ok && print_json(&out, common, e);
    buf_free(&out);
    return ok;
}

/* ---- pack ------------------------------------------------------------------------------------ */

static void tick(void *ctx, int64_t done) { cli_progress_at(ctx, done, NULL); }

static bool pack(const data_cli *o, const char *from, const cli_common *common, const split *p, int n,
                 err *e) {
    if (!o->out) return err_set(e, ERR_USAGE, "data pack wants --out DIR");
    if (!begin(o, "pack", from, common->seed, p, n, e)) return false;
    buf out = { 0 };
    json_writer w = json_writer_on(&out, !common->json);
    json_begin(&w, NULL, '{');
    bool ok = true;
    for (int i = 0; ok && i < n; i++) {
        int64_t packed = 0;
        cli_progress bar = cli_progress_start(p[i].name, data_count(p[i].set),
                                              common->quiet || common->json);
        const pack_options how = { .resize = (int)o->resize, .tick = tick, .ctx = &bar,
                                   .shard_bytes = (size_t)o->shard_mb << 20 };
        ok = data_pack(p[i].set, p[i].name, o->out, &how, &packed, e);
        cli_progress_end(&bar);
        json_int(&w, p[i].name, packed);
        if (ok) tell_bad(common, p[i].set);
        for (int k = i; !ok && k >= 0; k--) data_pack_discard(p[k].name, o->out);
    }
    finish(o);
    json_text(&w, "out", o->out);
    json_end(&w, '}');
    ok = ok && print_json(&out, common, e);
    buf_free(&out);
    return ok;
}

/* ---- the verb -------------------------------------------------------------------------------- */

/* The first word says what to do; the set is the second word or --data. */
static bool words_ok(const data_cli *o, int n_word, char **word, const char **from, err *e) {
    static const char *const known[] = { "make", "pack", "verify", "stats" };
    bool first = false;
    for (int i = 0; i < CLI_COUNT(known); i++)
        first = first || (n_word && !strcmp(word[0], known[i]));
    if (!first || n_word > 2)
        return err_set(e, ERR_USAGE, "data wants one word of make, pack, verify and stats%s%s",
                       n_word ? ", not " : "", n_word ? word[n_word > 2 ? 2 : 0] : "");
    if ((o->data != NULL) == (n_word == 2))
        return err_set(e, ERR_USAGE, "data %s wants one set: --data DIR or the word after it",
                       word[0]);
    if (o->resize && strcmp(word[0], "pack"))
        return err_set(e, ERR_USAGE, "--resize is for data pack; data %s takes the images as they are", word[0]);
    *from = o->data ? o->data : word[1];
    return true;
}

static bool run(const cli_common *common, const void *opt, int n_word, char **word, err *e) {
    const data_cli *o = opt;
    const char *from = NULL;
    split p[2];
    int n = 0;
    bool ok = words_ok(o, n_word, word, &from, e) &&
              open_splits(o, from, (uint64_t)common->seed, p, &n, e);
    if (ok && !strcmp(word[0], "make")) ok = make(o, from, common, p, n, e);
    else if (ok && !strcmp(word[0], "pack")) ok = pack(o, from, common, p, n, e);
    else if (ok) ok = report(o, from, common, p, n, !strcmp(word[0], "stats"), e);
    for (int i = 0; i < n; i++) data_free(p[i].set);
    return ok;
}

const cli_verb cmd_data = {
    .name = "data", .summary = "write, check and describe image sets",
    .option = options, .n_option = CLI_COUNT(options), .size = sizeof(data_cli),
    .positional = "make|pack|verify|stats [DIR]", .run = run,
};
