/* The command line, driven by the tables of cli.h. */
#include "core/cli.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const cli_option common_option[] = {
    { "threads", CLI_INT, offsetof(cli_common, threads), "0", "0:1024",
      "threads that compute; 0: the cores this process may use" },
    { "seed", CLI_INT, offsetof(cli_common, seed), "42", "0:", "seed of every random number" },
    { "json", CLI_FLAG, offsetof(cli_common, json), NULL, NULL,
      "standard output is exactly one JSON object" },
    { "quiet", CLI_FLAG, offsetof(cli_common, quiet), NULL, NULL, "no progress on standard error" },
    { "isa", CLI_CHOICE, offsetof(cli_common, isa), NULL, "scalar|avx2|avx512",
      "instruction set (the best there is, unless given)" },
    { "conv", CLI_CHOICE, offsetof(cli_common, conv), NULL, "direct|im2col",
      "road of convolutions (direct, unless given)" },
    { "exact", CLI_FLAG, offsetof(cli_common, exact), NULL, NULL,
      "no convolutions by Winograd, whose rounding is looser" },
};

/* ---- nearest names --------------------------------------------------------------------------- */

enum { NAME_MOST = 64 };

static int least(int a, int b) { return a < b ? a : b; }

/* Insertions, deletions, replacements and swaps of neighbours that turn a into b. */
static int edit_distance(const char *a, const char *b) {
    int n = (int)strnlen(a, NAME_MOST + 1), m = (int)strlen(b), row[3][NAME_MOST + 1];
    if (n > NAME_MOST || m > NAME_MOST) return n + m;
    int *before = row[0], *last = row[1], *now = row[2];
    for (int j = 0; j <= m; j++) last[j] = before[j] = j;
    for (int i = 1; i <= n; i++) {
        now[0] = i;
        for (int j = 1; j <= m; j++) {
            now[j] = least(least(last[j], now[j - 1]) + 1, last[j - 1] + (a[i - 1] != b[j - 1]));
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
                now[j] = least(now[j], before[j - 2] + 1);
        }
        int *oldest = before;
        before = last;
        last = now;
        now = oldest;
    }
    return last[m];
}

typedef struct { const char *typed; char best[NAME_MOST + 32]; int distance; } hint;

static hint hint_for(const char *typed) {
    size_t n = strnlen(typed, NAME_MOST);
    return (hint){ .typed = typed, .distance = 2 + (int)n / 2 };
}

/* A beginning of a name is as good as one slip of the finger. */
static void hint_try(hint *h, const char *name, const char *shown) {
    size_t n = strlen(h->typed);
    int d = n >= 2 && !strncmp(name, h->typed, n) ? 1 : edit_distance(h->typed, name);
    if (d >= h->distance) return;
    snprintf(h->best, sizeof h->best, ", did you mean %s?", shown);
    h->distance = d;
}

/* ---- options --------------------------------------------------------------------------------- */

static const cli_option *find_in(const cli_option *o, int n, const char *name) {
    for (int i = 0; i < n; i++)
        if (!strcmp(o[i].name, name)) return &o[i];
    return NULL;
}

/* A verb's own option hides the common one of the same name (bench takes a list of threads). */
static const cli_option *find_option(const cli_verb *v, const char *name) {
    const cli_option *o = find_in(v->option, v->n_option, name);
    return o ? o : find_in(common_option, CLI_COUNT(common_option), name);
}

static bool is_common(const cli_option *o) {
    return o >= common_option && o < common_option + CLI_COUNT(common_option);
}

/* The i-th option as the user sees them: the verb's, then the common ones it does not hide. */
static const cli_option *nth_option(const cli_verb *v, int i) {
    if (i < v->n_option) return &v->option[i];
    for (int k = 0, n = v->n_option; k < CLI_COUNT(common_option); k++)
        if (find_option(v, common_option[k].name) == &common_option[k] && n++ == i)
            return &common_option[k];
    return NULL;
}

static bool is_required(const cli_option *o) { return o->fallback && !strcmp(o->fallback, "!"); }

static bool is_on(const cli_option *o) {
    return o->type == CLI_FLAG && o->fallback && !strcmp(o->fallback, "true");
}

/* ---- values ---------------------------------------------------------------------------------- */

/* The whole text must be one finite decimal number. */
static bool read_number(const char *text, size_t len, double *out) {
    char copy[64], *end;
    if (!len || len >= sizeof copy) return false;
    memcpy(copy, text, len);
    copy[len] = '\0';
    if (strspn(copy, "+-.0123456789eE") < len) return false;
    *out = strtod(copy, &end);
    return end == copy + len && isfinite(*out);
}

static bool in_range(const cli_option *o, const char *text, double value, err *e) {
    if (!o->range) return true;
    const char *colon = strchr(o->range, ':');
    int lo_len = (int)(colon - o->range);
    double lo = -HUGE_VAL, hi = HUGE_VAL;
    if (lo_len) read_number(o->range, (size_t)lo_len, &lo);
    if (colon[1]) read_number(colon + 1, strlen(colon + 1), &hi);
    if (value >= lo && value <= hi) return true;
    if (!colon[1])
        return err_set(e, ERR_USAGE, "--%s %s: at least %.*s is wanted", o->name, text, lo_len, o->range);
    if (!lo_len)
        return err_set(e, ERR_USAGE, "--%s %s: at most %s is wanted", o->name, text, colon + 1);
    return err_set(e, ERR_USAGE, "--%s %s: a value from %.*s to %s is wanted", o->name, text, lo_len,
                   o->range, colon + 1);
}

static bool set_flag(const cli_option *o, const char *text, bool *out, err *e) {
    *out = !strcmp(text, "true") || !strcmp(text, "1");
    return *out || !strcmp(text, "false") || !strcmp(text, "0")
        || err_set(e, ERR_USAGE, "--%s=%s: true or false is wanted", o->name, text);
}

static bool set_int(const cli_option *o, const char *text, int64_t *out, err *e) {
    char *end;
    errno = 0;
    long long v = strtoll(text, &end, 10);
    if (!*text || end == text || *end || errno || strspn(text, "+-0123456789") < strlen(text))
        return err_set(e, ERR_USAGE, "--%s %s: a whole number is wanted", o->name, text);
    *out = v;
    return in_range(o, text, (double)v, e);
}

static bool set_number(const cli_option *o, const char *text, double *out, err *e) {
    size_t len = strlen(text);
    bool percent = len && text[len - 1] == '%';
    if (!read_number(text, len - percent, out))
        return err_set(e, ERR_USAGE, "--%s %s: a number is wanted", o->name, text);
    if (percent) *out /= 100;
    return in_range(o, text, *out, e);
}

/* Empty text is an unset variable of a script, never a name. */
static bool set_text(const cli_option *o, const char *text, const char **out, err *e) {
    *out = text;
    return *text || err_set(e, ERR_USAGE, "--%s is empty, a value is wanted", o->name);
}

static bool set_choice(const cli_option *o, const char *text, const char **out, err *e) {
    hint h = hint_for(text);
    for (const char *s = o->range; *s; s += *s == '|') {
        char word[NAME_MOST];
        int len = (int)strcspn(s, "|");
        snprintf(word, sizeof word, "%.*s", len, s);
        if (!strcmp(word, text)) { *out = text; return true; }
        hint_try(&h, word, word);
        s += len;
    }
    return err_set(e, ERR_USAGE, "--%s %s: one of %s is wanted%s", o->name, text, o->range, h.best);
}

static bool set_value(const cli_option *o, const char *text, char *base, err *e) {
    void *at = base + o->offset;
    switch (o->type) {
    case CLI_FLAG:   return set_flag(o, text, at, e);
    case CLI_INT:    return set_int(o, text, at, e);
    case CLI_NUMBER: return set_number(o, text, at, e);
    case CLI_CHOICE: return set_choice(o, text, at, e);
    case CLI_TEXT:   return set_text(o, text, at, e);
    }
    return false;
}

bool cli_numbers(const char *flag, const char *text, double *out, int max_n, int *n, err *e) {
    *n = 0;
    for (const char *s = text; ; s++) {
        size_t len = strcspn(s, ",");
        if (max_n == 1 && (text[len] || !read_number(text, len, out)))
            return err_set(e, ERR_USAGE, "--%s %.80s: a number is wanted", flag, text);
        if (*n == max_n)
            return err_set(e, ERR_USAGE, "--%s %.80s: at most %d numbers are possible", flag, text, max_n);
        if (!read_number(s, len, &out[*n]))
            return err_set(e, ERR_USAGE, "--%s %.80s: numbers separated by commas are wanted, not \"%.*s\"",
                           flag, text, len < 80 ? (int)len : 80, s);
        ++*n;
        s += len;
        if (!*s) return true;
    }
}

/* ---- parsing --------------------------------------------------------------------------------- */

typedef struct {
    const cli_verb *verb;
    cli_common common;
    char *options;               /* the verb's struct */
    uint64_t given[4];           /* bit i: option i of the verb was given */
    char **word; int n_word;
    bool help;
} command;

static char *base_of(command *c, const cli_option *o) {
    return is_common(o) ? (char *)&c->common : c->options;
}

static bool unknown_flag(const command *c, const char *arg, const char *name, err *e) {
    hint h = hint_for(name);
    const cli_option *o;
    for (int i = 0; (o = nth_option(c->verb, i)); i++) {
        char shown[NAME_MOST];
        snprintf(shown, sizeof shown, "--%s", o->name);
        hint_try(&h, o->name, shown);
        snprintf(shown, sizeof shown, "--no-%s", o->name);
        if (is_on(o)) hint_try(&h, shown + 2, shown);
    }
    return err_set(e, ERR_USAGE, "%s has no flag %.*s%s (layermerge %s --help lists them)", c->verb->name,
                   (int)strcspn(arg, "="), arg, h.best, c->verb->name);
}

/* One argument that begins with a dash; *i moves past its value. */
static bool parse_flag(command *c, int argc, char **argv, int *i, err *e) {
    const char *arg = argv[*i], *dashless = arg + (arg[1] == '-' ? 2 : 1);
    size_t len = strcspn(dashless, "=");
    const char *value = dashless[len] ? dashless + len + 1 : NULL;
    char name[NAME_MOST];
    snprintf(name, sizeof name, "%.*s", len < NAME_MOST ? (int)len : NAME_MOST - 1, dashless);

    const cli_option *o = arg[1] == '-' && len < NAME_MOST ? find_option(c->verb, name) : NULL;
    if (!o && arg[1] == '-' && !strncmp(name, "no-", 3) && !value) {
        o = find_option(c->verb, name + 3);
        if (o && o->type != CLI_FLAG) o = NULL;
        value = "false";
    }
    if (!o) return unknown_flag(c, arg, name, e);
    if (!value && o->type == CLI_FLAG) value = "true";
    if (!value) {
        if (*i + 1 >= argc || !strncmp(argv[*i + 1], "--", 2))
            return err_set(e, ERR_USAGE, "%s --%s wants a value", c->verb->name, o->name);
        value = argv[++*i];
    }
    if (!is_common(o)) {
        int64_t at = o - c->verb->option;
        c->given[at / 64] |= (uint64_t)1 << at % 64;
    }
    return set_value(o, value, base_of(c, o), e);
}

static bool set_defaults(command *c, err *e) {
    const cli_option *o;
    assert(c->verb->n_option <= (int)sizeof c->given * 8);
    for (int i = 0; (o = nth_option(c->verb, i)); i++) {
        cli_option unlimited = *o;            /* a default such as 0 for "as many as there are" */
        if (o->type != CLI_CHOICE) unlimited.range = NULL;
        if (o->fallback && !is_required(o) && !set_value(&unlimited, o->fallback, base_of(c, o), e))
            return false;
    }
    return true;
}

static bool check_required(const command *c, err *e) {
    for (int i = 0; i < c->verb->n_option; i++)
        if (is_required(&c->verb->option[i]) && !(c->given[i / 64] >> i % 64 & 1))
            return err_set(e, ERR_USAGE, "%s needs --%s: %s", c->verb->name, c->verb->option[i].name,
                           c->verb->option[i].help);
    return true;
}

static bool parse(command *c, int argc, char **argv, err *e) {
    if (!set_defaults(c, e)) return false;
    bool only_words = false;
    for (int i = 0; i < argc; i++)            /* help wins over whatever else is wrong */
        if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) return c->help = true;
    for (int i = 0; i < argc; i++) {
        if (!only_words && !strcmp(argv[i], "--")) only_words = true;
        else if (!only_words && argv[i][0] == '-' && argv[i][1]) {
            if (!parse_flag(c, argc, argv, &i, e)) return false;
        } else if (!c->verb->positional) {
            return err_set(e, ERR_USAGE, "%s takes flags only, not \"%.200s\"", c->verb->name, argv[i]);
        } else if (!*argv[i]) {
            return err_set(e, ERR_USAGE, "%s: an argument is empty, wanted %s", c->verb->name,
                           c->verb->positional);
        } else c->word[c->n_word++] = argv[i];
    }
    return check_required(c, e);
}

void cli_config(json_writer *w, const cli_verb *v, const cli_common *common, const void *options) {
    const cli_option *o;
    cli_common used = *common;
    used.threads = par_threads();
    used.isa = isa_names[core_isa()];
    used.conv = core_conv_road();
    for (int i = 0; (o = nth_option(v, i)); i++) {
        const void *at = (is_common(o) ? (const char *)&used : (const char *)options) + o->offset;
        switch (o->type) {
        case CLI_FLAG:   json_bool(w, o->name, *(const bool *)at); break;
        case CLI_INT:    json_int(w, o->name, *(const int64_t *)at); break;
        case CLI_NUMBER: json_number(w, o->name, *(const double *)at); break;
        case CLI_TEXT:
        case CLI_CHOICE: json_text(w, o->name, *(const char *const *)at); break;
        }
    }
}

/* ---- help ------------------------------------------------------------------------------------ */

static void print_option(const cli_option *o) {
    static const char *const kind[] = { "", " N", " X", " TEXT", "" };
    char left[256];
    snprintf(left, sizeof left, "--%s%s%s%s%s", is_on(o) ? "no-" : "", o->name, kind[o->type],
             o->type == CLI_CHOICE ? " " : "", o->type == CLI_CHOICE ? o->range : "");
    printf("  %-26s%s%s", left, strlen(left) > 25 ? "\n                            " : "", o->help);
    if (is_required(o)) printf(" (required)");
    else if (is_on(o)) printf(" (on, unless given)");
    else if (o->fallback && o->type != CLI_FLAG) printf(" (default %s)", o->fallback);
    printf("\n");
}

static void print_verb_help(const cli_verb *v) {
    printf("usage: layermerge %s [flags]%s%s\n%s\n\n", v->name, v->positional ? " " : "",
           v->positional ? v->positional : "", v->summary);
    const cli_option *o;
    for (int i = 0; (o = nth_option(v, i)); i++) {
        if (i == v->n_option && i) printf("\n");
        print_option(o);
    }
}

static bool is_help(const char *word) {
    return !strcmp(word, "help") || !strcmp(word, "--help") || !strcmp(word, "-h");
}

static void print_help(const cli_verb *const *verb, int n) {
    printf("layermerge makes convolutional networks shallower and faster.\n"
           "usage: layermerge VERB [flags]\n\n");
    for (int i = 0; i < n; i++) printf("  %-12s%s\n", verb[i]->name, verb[i]->summary);
    printf("  %-12s%s\n  %-12s%s\n\n", "help", "this list, or help VERB", "version",
           "version, build and machine");
    printf("layermerge VERB --help lists the verb's flags. Results go to standard output, progress\n"
           "and errors to standard error. Exit codes: 0 done, 1 a negative answer, 64 usage,\n"
           "65 bad content, 66 missing input, 70 internal, 71 out of memory, 74 input/output,\n"
           "75 stopped with everything saved (run the same command again), 76 not finite,\n"
           "78 configuration.\n");
}

/* ---- version --------------------------------------------------------------------------------- */

static bool version_run(const cli_common *c, const void *options, int n_word, char **word, err *e) {
    (void)options, (void)n_word, (void)word;
    buf b = {0};
    core_describe(&b);
    json *j = b.failed ? NULL : json_parse(b.data, b.len, e);
    if (j && c->json) printf("{\"version\":\"%s\",%s\n", CORE_VERSION, b.data + 1);
    else if (j) {
        printf("layermerge %s\n", CORE_VERSION);
        for (const json *m = j->child; m; m = m->next)
            if (m->type == JSON_NUMBER) printf("%-9s %g\n", m->key, m->number);
            else printf("%-9s %s\n", m->key, m->text ? m->text : "");
    }
    json_free(j);
    buf_free(&b);
    return j || err_note(e, "describing the machine");
}

/* The verb of the command line itself, with the flags that all verbs have. */
static const cli_verb version_verb = { .name = "version", .summary = "version, build and machine",
                                       .run = version_run };

/* ---- main ------------------------------------------------------------------------------------ */

static const cli_verb *find_verb(const cli_verb *const *verb, int n, const char *name, err *e) {
    hint h = hint_for(name);
    if (!strcmp(name, "version") || !strcmp(name, "--version")) return &version_verb;
    for (int i = 0; i < n; i++) {
        if (!strcmp(verb[i]->name, name)) return verb[i];
        hint_try(&h, verb[i]->name, verb[i]->name);
    }
    hint_try(&h, "help", "help");
    hint_try(&h, "version", "version");
    err_set(e, ERR_USAGE, "there is no verb \"%s\"%s (layermerge help lists them)", name, h.best);
    return NULL;
}

static bool run_verb(const cli_verb *v, int argc, char **argv, err *e) {
    command c = { .verb = v };
    c.options = mem_new(1, v->size, e);
    c.word = mem_new((size_t)argc + 1, sizeof *c.word, e);
    bool ok = c.options && c.word && parse(&c, argc, argv, e);
    if (ok && c.help) print_verb_help(v);
    else if (ok) {
        core_options o = { .threads = (int)c.common.threads, .isa = c.common.isa, .conv = c.common.conv,
                           .exact = c.common.exact };
        ok = core_init(&o, e);
        if (ok) {
            stop_install();
            ok = v->run(&c.common, c.options, c.n_word, c.word, e);
            core_stop();
        }
    }
    mem_free(c.options);
    mem_free(c.word);
    return ok;
}

static bool dispatch(int argc, char **argv, const cli_verb *const *verb, int n, err *e) {
    if (argc < 2) return err_set(e, ERR_USAGE, "no verb given (layermerge help lists them)");
    const char *name = argv[1];
    bool help = is_help(name);
    if (help && (argc == 2 || (argc == 3 && is_help(argv[2])))) { print_help(verb, n); return true; }
    if (help && argc > 3)
        return err_set(e, ERR_USAGE, "help takes one verb, not also \"%.200s\"", argv[3]);
    const cli_verb *v = find_verb(verb, n, help ? argv[2] : name, e);
    if (!v) return false;
    if (help) { print_verb_help(v); return true; }
    return run_verb(v, argc - 2, argv + 2, e);
}

int cli_main(int argc, char **argv, const cli_verb *const *verb, int n_verb) {
    err e = {0};
    mem_keep();
    signal(SIGPIPE, SIG_IGN);                 /* a reader that left is an error with a sentence */
    bool ok = dispatch(argc, argv, verb, n_verb, &e);
    if (!ok && e.code == ERR_NONE) err_set(&e, ERR_INTERNAL, "failed without saying why");
    errno = 0;                                /* results that nobody received are not results */
    if ((fflush(stdout) || ferror(stdout)) && ok)
        ok = err_set(&e, ERR_IO, "cannot write standard output: %s", errno ? strerror(errno) : "write failed");
    if (!ok) fprintf(stderr, "layermerge: %s\n", e.msg);
    return ok ? 0 : (int)e.code;
}

/* ---- progress -------------------------------------------------------------------------------- */

static void print_duration(char out[32], double s) {
    int64_t t = (int64_t)(s + 0.5);
    if (t < 60) snprintf(out, 32, "%ds", (int)t);
    else if (t < 3600) snprintf(out, 32, "%dm%02ds", (int)(t / 60), (int)(t % 60));
    else snprintf(out, 32, "%" PRId64 "h%02dm", t / 3600, (int)(t / 60 % 60));
}

cli_progress cli_progress_start(const char *what, int64_t total, bool quiet) {
    return (cli_progress){ .what = what, .total = total, .start_ns = clock_ns(), .quiet = quiet };
}

void cli_progress_at(cli_progress *p, int64_t done, const char *note) {
    if (p->quiet) return;
    bool terminal = isatty(STDERR_FILENO);
    int64_t now = clock_ns(), since = now - (p->last_ns ? p->last_ns : p->start_ns);
    bool due = since >= (terminal ? 100 : 10000) * INT64_C(1000000);
    if (!due && done != p->total) return;
    p->last_ns = now;
    double each = done > 0 ? 1e-9 * (double)(now - p->start_ns) / (double)done : 0;
    char eta[32];
    print_duration(eta, each * (double)(p->total - done));
    fprintf(stderr, "%s%s %" PRId64 "/%" PRId64, terminal ? "\r\033[K" : "", p->what, done, p->total);
    if (done > 0) {
        if (each >= 1) fprintf(stderr, "  %.1f s each", each);
        else fprintf(stderr, "  %.3g ms each", 1e3 * each);
        fprintf(stderr, "  ETA %s", eta);
    }
    fprintf(stderr, "%s%s%s", note ? "  " : "", note ? note : "", terminal ? "" : "\n");
    fflush(stderr);
}

void cli_progress_end(cli_progress *p) {
    if (!p->quiet && p->last_ns && isatty(STDERR_FILENO)) fputc('\n', stderr);
}
