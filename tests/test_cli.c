/* The command line: parsing, defaults, hints, help, exit codes. */
#include "core/cli.h"
#include "tests/test.h"

#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

/* ---- two verbs that say what they were given -------------------------------------------------- */

typedef struct {
    bool hflip, exact;
    int64_t epochs;
    double lr, keep;
    const char *out, *opt, *tag;
} fit_options;

#define AT(field) offsetof(fit_options, field)
static const cli_option fit_option[] = {
    { "out", CLI_TEXT, AT(out), "!", NULL, "file to write" },
    { "epochs", CLI_INT, AT(epochs), "0", "1:1000", "passes over the data; 0: the recipe's" },
    { "lr", CLI_NUMBER, AT(lr), "0.1", "0:", "learning rate" },
    { "keep", CLI_NUMBER, AT(keep), "50%", ":1", "share kept" },
    { "opt", CLI_CHOICE, AT(opt), "sgd", "sgd|adam|adamw", "optimiser" },
    { "hflip", CLI_FLAG, AT(hflip), "true", NULL, "mirror at random" },
    { "exact", CLI_FLAG, AT(exact), NULL, NULL, "no shortcuts" },
    { "warmup-epochs", CLI_INT, AT(epochs), NULL, NULL, "same place, for the hint" },
    { "tag", CLI_TEXT, AT(tag), NULL, NULL, "word in the log" },
};

static bool fit_run(const cli_common *c, const void *options, int n_word, char **word, err *e);
static const cli_verb cmd_fit = { "fit", "fit a thing", fit_option, CLI_COUNT(fit_option),
                                  sizeof(fit_options), NULL, fit_run };

static bool fit_run(const cli_common *c, const void *options, int n_word, char **word, err *e) {
    (void)n_word, (void)word, (void)e;
    buf b = {0};
    json_writer w = json_writer_on(&b, false);
    json_begin(&w, NULL, '{');
    cli_config(&w, &cmd_fit, c, options);
    json_end(&w, '}');
    printf("%s", b.data);
    buf_free(&b);
    return true;
}

typedef struct { const char *threads, *fail; } list_options;
static const cli_option list_option[] = {
    { "threads", CLI_TEXT, offsetof(list_options, threads), "1,2", NULL, "list of thread counts" },
    { "fail", CLI_CHOICE, offsetof(list_options, fail), NULL, "data|silent", "end badly" },
};

static bool list_run(const cli_common *c, const void *options, int n_word, char **word, err *e) {
    const list_options *o = options;
    if (o->fail) return !strcmp(o->fail, "data") && err_set(e, ERR_DATA, "a.csv: row 3 is short");
    printf("threads=%s/%d seed=%d", o->threads, (int)c->threads, (int)c->seed);
    for (int i = 0; i < n_word; i++) printf(" [%s]", word[i]);
    return true;
}

static const cli_verb cmd_list = { "list", "list things", list_option, CLI_COUNT(list_option),
                                   sizeof(list_options), "FILE...", list_run };
static const cli_verb *const verbs[] = { &cmd_fit, &cmd_list };

/* ---- running them and catching what they print ------------------------------------------------ */

static char out[16384], errors[4096];

static void take(FILE *f, char *text, size_t size) {
    fseek(f, 0, SEEK_SET);
    text[fread(text, 1, size - 1, f)] = '\0';
    fclose(f);
}

static int run(const char *line) {
    char copy[1024], *argv[32] = { "layermerge" };
    int argc = 1, keep_out, keep_err;
    snprintf(copy, sizeof copy, "%s", line);
    for (char *s = strtok(copy, " "); s; s = strtok(NULL, " ")) argv[argc++] = s;
    FILE *o = tmpfile(), *x = tmpfile();
    if (!o || !x) return -1;
    fflush(stdout);
    keep_out = dup(STDOUT_FILENO), keep_err = dup(STDERR_FILENO);
    dup2(fileno(o), STDOUT_FILENO), dup2(fileno(x), STDERR_FILENO);
    int code = cli_main(argc, argv, verbs, CLI_COUNT(verbs));
    fflush(stdout), fflush(stderr);
    dup2(keep_out, STDOUT_FILENO), dup2(keep_err, STDERR_FILENO);
    close(keep_out), close(keep_err);
    take(o, out, sizeof out);
    take(x, errors, sizeof errors);
    return code;
}

/* Refused with this code, one sentence that holds `part`, and nothing on standard output. */
static bool refused(const char *line, int code, const char *part) {
    int got = run(line);
    char *end = strchr(errors, '\n');
    bool ok = got == code && !strncmp(errors, "layermerge: ", 12) && strstr(errors, part) && !*out
           && end && !end[1];
    if (!ok) fprintf(stderr, "\"%s\" gave %d, \"%s\", wanted %d, \"%s\"\n", line, got, errors, code, part);
    return ok;
}

/* ---- tests ------------------------------------------------------------------------------------ */

static void defaults_and_given_values_reach_the_verb(void) {
    CHECK(run("fit --out m.st --threads 1 --isa scalar") == 0);
    CHECK_TEXT(out, "{\"out\":\"m.st\",\"epochs\":0,\"lr\":0.1,\"keep\":0.5,\"opt\":\"sgd\",\"hflip\":true,"
                    "\"exact\":false,\"warmup-epochs\":0,\"tag\":null,\"threads\":1,\"seed\":42,"
                    "\"json\":false,\"quiet\":false,\"isa\":\"scalar\",\"conv\":\"direct\"}");
    CHECK(run("fit --out=a=b --epochs 7 --lr=2.5e-1 --keep 25% --opt adam --no-hflip --exact --tag -5 "
              "--seed 9 --json --quiet --threads=2 --isa scalar --conv im2col") == 0);
    CHECK_TEXT(out, "{\"out\":\"a=b\",\"epochs\":7,\"lr\":0.25,\"keep\":0.25,\"opt\":\"adam\",\"hflip\":false,"
                    "\"exact\":true,\"warmup-epochs\":7,\"tag\":\"-5\",\"threads\":2,\"seed\":9,"
                    "\"json\":true,\"quiet\":true,\"isa\":\"scalar\",\"conv\":\"im2col\"}");
    CHECK(run("fit --out x --hflip=false --exact=true --threads 1") == 0);
    CHECK(strstr(out, "\"hflip\":false,\"exact\":true"));
}

static void a_configuration_names_the_threads_and_the_isa_that_were_chosen(void) {
    err e = {0};
    CHECK(run("fit --out m.st") == 0);
    CHECK_OK(core_init(&(core_options){0}, &e), e);
    char want[128];
    snprintf(want, sizeof want, "\"threads\":%d,", par_threads());
    CHECK(strstr(out, want));
    snprintf(want, sizeof want, "\"isa\":\"%s\",\"conv\":\"direct\"}", isa_names[core_isa()]);
    CHECK(strstr(out, want));
    core_stop();
}

static void a_verbs_own_option_hides_the_common_one(void) {
    CHECK(run("list --threads 1,2,4 --seed 3 a - -- --b") == 0);
    CHECK_TEXT(out, "threads=1,2,4/0 seed=3 [a] [-] [--b]");
}

static void unknown_verbs_and_flags_get_the_nearest_name(void) {
    CHECK(refused("fti", 64, "\"fti\", did you mean fit?"));
    CHECK(refused("lsit --out x", 64, "did you mean list?"));
    CHECK(refused("fit --ephocs 3", 64, "--ephocs, did you mean --epochs?"));
    CHECK(refused("fit --warmup 3", 64, "did you mean --warmup-epochs?"));
    CHECK(refused("fit --ephocs=3", 64, "--ephocs, did you mean --epochs?"));
    CHECK(refused("fit --no-hflp", 64, "did you mean --no-hflip?"));
    CHECK(refused("fit --no-epochs", 64, "--no-epochs"));
    CHECK(refused("fit -out x", 64, "-out, did you mean --out?"));
    CHECK(refused("fit --thread 2", 64, "did you mean --threads?"));
    CHECK(refused("fit --zzzzzzzzzzzzzzzz 2", 64, "--zzzzzzzzzzzzzzzz (layermerge fit --help"));
    CHECK(refused("", 64, "no verb"));
    char line[400] = "fit --";
    memset(line + 6, 'e', 300);
    CHECK(refused(line, 64, "fit has no flag --eee"));
}

static void what_is_missing_or_too_much_is_named(void) {
    CHECK(refused("fit", 64, "fit needs --out"));
    CHECK(refused("fit --out", 64, "--out wants a value"));
    CHECK(refused("fit --out --json", 64, "--out wants a value"));
    CHECK(refused("fit --out x word", 64, "\"word\""));
}

static void values_must_be_what_they_claim(void) {
    CHECK(refused("fit --out x --epochs 3.5", 64, "--epochs 3.5: a whole number"));
    CHECK(refused("fit --out x --epochs 3x", 64, "--epochs 3x"));
    CHECK(refused("fit --out=", 64, "--out is empty"));
    CHECK(refused("fit --out x --epochs=", 64, "--epochs"));
    CHECK(refused("fit --out x --epochs 99999999999999999999", 64, "whole number"));
    CHECK(refused("fit --out x --epochs 0", 64, "from 1 to 1000"));
    CHECK(refused("fit --out x --epochs 1001", 64, "from 1 to 1000"));
    CHECK(refused("fit --out x --lr -0.1", 64, "at least 0"));
    CHECK(refused("fit --out x --lr nan", 64, "--lr nan: a number"));
    CHECK(refused("fit --out x --lr 1e999", 64, "a number"));
    CHECK(refused("fit --out x --lr 0x10", 64, "a number"));
    CHECK(refused("fit --out x --lr %", 64, "a number"));
    CHECK(refused("fit --out x --keep 101%", 64, "at most 1"));
    CHECK(refused("fit --out x --opt adma", 64, "sgd|adam|adamw is wanted, did you mean adam?"));
    CHECK(refused("fit --out x --hflip=maybe", 64, "true or false"));
    CHECK(refused("fit --out x --isa avx9", 64, "scalar|avx2|avx512"));
    CHECK(refused("fit --out x --threads -1", 64, "from 0 to 1024"));
}

static void help_names_every_flag(void) {
    CHECK(run("help") == 0 && strstr(out, "fit a thing") && strstr(out, "list things") && !*errors);
    const char *asks[] = { "fit --help", "help fit", "fit --nonsense -h" };
    for (int i = 0; i < 3; i++) {
        CHECK(run(asks[i]) == 0 && !*errors);
        for (int k = 0; k < CLI_COUNT(fit_option); k++) CHECK(strstr(out, fit_option[k].name));
        CHECK(strstr(out, "--no-hflip") && strstr(out, "(required)") && strstr(out, "(default 0.1)"));
        CHECK(strstr(out, "--seed") && strstr(out, "sgd|adam|adamw"));
    }
    CHECK(refused("help fti", 64, "did you mean fit?"));
    CHECK(run("version") == 0 && !strncmp(out, "layermerge ", 11));
    CHECK(refused("version --jsno", 64, "--jsno"));
    CHECK(refused("version word", 64, "\"word\""));
    CHECK(refused("help verison", 64, "did you mean version?"));
    CHECK(refused("help fit word", 64, "\"word\""));
    CHECK(run("version --json") == 0);
    err e = {0};
    json *j = json_parse(out, strlen(out), &e);
    CHECK_OK(j, e);
    json_free(j);
}

static void help_and_version_are_names_like_those_of_the_verbs(void) {
    const char *lists[] = { "help help", "help --help", "help -h", "--help help", "-h" };
    for (int i = 0; i < CLI_COUNT(lists); i++)
        CHECK(run(lists[i]) == 0 && strstr(out, "usage: layermerge VERB") && strstr(out, "fit a thing") && !*errors);
    const char *flags[] = { "help version", "version --help", "version -h", "--version --help", "help --version" };
    for (int i = 0; i < CLI_COUNT(flags); i++)
        CHECK(run(flags[i]) == 0 && strstr(out, "usage: layermerge version") && strstr(out, "--json") && !*errors);
    const char *same[] = { "version --quiet", "version --threads 1", "--version", "version --seed 3" };
    for (int i = 0; i < CLI_COUNT(same); i++)
        CHECK(run(same[i]) == 0 && !strncmp(out, "layermerge " CORE_VERSION, 11) && !*errors);
    CHECK(run("version --quiet --json --threads=1") == 0 && *out == '{' && strstr(out, "\"version\":"));
}

static void a_verbs_error_becomes_the_exit_code(void) {
    CHECK(refused("list --fail data", 65, "a.csv: row 3 is short"));
    CHECK(refused("list --fail silent", 70, "without saying why"));
}

static void results_nobody_receives_are_an_io_error(void) {
    int full = open("/dev/full", O_WRONLY);
    if (full < 0) SKIP("no /dev/full");
    fflush(stdout);
    int keep = dup(STDOUT_FILENO), keep_err = dup(STDERR_FILENO), null = open("/dev/null", O_WRONLY);
    char *argv[] = { "layermerge", "list", "x" };
    dup2(full, STDOUT_FILENO), dup2(null, STDERR_FILENO);
    int code = cli_main(3, argv, verbs, 2);
    dup2(keep, STDOUT_FILENO), dup2(keep_err, STDERR_FILENO);
    close(keep), close(keep_err), close(full), close(null);
    clearerr(stdout);
    CHECK(code == ERR_IO);
}

static void lists_of_numbers_are_read_strictly(void) {
    double x[3];
    int n;
    err e = {0};
    CHECK_OK(cli_numbers("budget", "1.5,2,-3e1", x, 3, &n, &e), e);
    CHECK(n == 3);
    CHECK_CLOSE(x[0], 1.5, 0);
    CHECK_CLOSE(x[2], -30, 0);
    CHECK_OK(cli_numbers("budget", "4", x, 3, &n, &e), e);
    CHECK(n == 1);
    const char *bad[] = { "", "1,", ",1", "1,,2", "1;2", "a", "1 2", "inf", "1,2,3,4" };
    for (int i = 0; i < CLI_COUNT(bad); i++) {
        e = (err){0};
        CHECK(!cli_numbers("budget", bad[i], x, 3, &n, &e) && e.code == ERR_USAGE && strstr(e.msg, "--budget"));
    }
}

static void progress_tells_how_long_and_can_be_silenced(void) {
    FILE *f = tmpfile();
    if (!f) SKIP("no temporary file");
    int keep = dup(STDERR_FILENO);
    dup2(fileno(f), STDERR_FILENO);
    for (int quiet = 0; quiet < 2; quiet++) {
        cli_progress p = cli_progress_start("importance", 150, quiet);
        p.start_ns -= 37 * INT64_C(4100000000);         /* as if 37 of them had taken 4.1 s each */
        cli_progress_at(&p, 37, "acc 81.2");
        cli_progress_at(&p, 38, NULL);                  /* too soon for another line */
        cli_progress_end(&p);
    }
    fflush(stderr);
    dup2(keep, STDERR_FILENO);
    close(keep);
    take(f, errors, sizeof errors);
    CHECK_TEXT(errors, "importance 37/150  4.1 s each  ETA 7m43s  acc 81.2\n");
}

int main(void) {
    RUN(defaults_and_given_values_reach_the_verb);
    RUN(a_configuration_names_the_threads_and_the_isa_that_were_chosen);
    RUN(a_verbs_own_option_hides_the_common_one);
    RUN(unknown_verbs_and_flags_get_the_nearest_name);
    RUN(what_is_missing_or_too_much_is_named);
    RUN(values_must_be_what_they_claim);
    RUN(help_names_every_flag);
    RUN(help_and_version_are_names_like_those_of_the_verbs);
    RUN(a_verbs_error_becomes_the_exit_code);
    RUN(results_nobody_receives_are_an_io_error);
    RUN(lists_of_numbers_are_read_strictly);
    RUN(progress_tells_how_long_and_can_be_silenced);
    END();
}
