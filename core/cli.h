/* The command line as tables. A verb is a row, an option is a row; parsing, defaults, help, the
 * nearest-name hint and `config.json` all read the same rows. Included by main.c and cmd_*.c only. */
#ifndef LM_CLI_H
#define LM_CLI_H

#include "core/core.h"
#include "core/io.h"

typedef enum {
    CLI_FLAG,                    /* bool */
    CLI_INT,                     /* int64_t */
    CLI_NUMBER,                  /* double; a trailing % divides by 100 */
    CLI_TEXT,                    /* const char * */
    CLI_CHOICE,                  /* const char *, one of the words in `range` separated by '|' */
} cli_type;

typedef struct {
    const char *name;            /* without dashes: "warmup-epochs" */
    cli_type type;
    size_t offset;               /* into the verb's option struct */
    const char *fallback;        /* default as the user would type it; NULL: zero/NULL, "!": required */
    const char *range;           /* CLI_CHOICE: words; numbers: "lo:hi" inclusive, either may be empty */
    const char *help;
} cli_option;

/* Rows that many verbs share; T is the verb's struct, whose members are called like the flags (bad). */
#define CLI_BUILDER(T) \
    { "width", CLI_NUMBER, offsetof(T, width), NULL, "0:20", "width multiplier of a builder; 0: its own" }, \
    { "classes", CLI_INT, offsetof(T, classes), NULL, "0:1000000", "outputs of a builder (default: the data's, or its own)" }, \
    { "input", CLI_TEXT, offsetof(T, input), NULL, NULL, "C,H,W of a builder (default: the data's, or its own)" }
#define CLI_BAD_IMAGES(T) \
    { "on-bad-image", CLI_CHOICE, offsetof(T, bad), "skip", "skip|fail", "what to do with images that cannot be decoded" }

typedef struct {                 /* every verb has these */
    int64_t threads, seed;
    bool json, quiet, exact;
    const char *isa, *conv;
} cli_common;

typedef struct cli_verb {
    const char *name, *summary;
    const cli_option *option; int n_option;
    size_t size;                 /* of the option struct */
    const char *positional;      /* help text for words without dashes; NULL: none allowed */
    /* word: the positional arguments. false: e holds exit code and sentence. */
    bool (*run)(const cli_common *common, const void *options, int n_word, char **word, err *e);
} cli_verb;

/* Parse argv, initialise core, run, print the error sentence, return the exit code. Handles help,
 * version, `VERB --help`; unknown verbs and flags get the nearest name. `--name=value` works too. */
int cli_main(int argc, char **argv, const cli_verb *const *verb, int n_verb);

/* The values of a verb as members of a JSON object (for config.json); threads, isa and conv as core
 * resolved them. */
void cli_config(json_writer *w, const cli_verb *v, const cli_common *common, const void *options);
/* "1.5,2" → numbers; false with a sentence naming the flag. max_n values at most. */
bool cli_numbers(const char *flag, const char *text, double *out, int max_n, int *n, err *e);

/* Progress on stderr: "importance 37/150  4.1 s each  ETA 7m42s"; rewrites its line on a terminal,
 * otherwise one line every ten seconds. Silent with --quiet. */
typedef struct { const char *what; int64_t total, start_ns, last_ns; bool quiet; } cli_progress;
cli_progress cli_progress_start(const char *what, int64_t total, bool quiet);
void cli_progress_at(cli_progress *p, int64_t done, const char *note);   /* note may be NULL */
void cli_progress_end(cli_progress *p);

#define CLI_COUNT(a) ((int)(sizeof(a) / sizeof *(a)))

#endif
