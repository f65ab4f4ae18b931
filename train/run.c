/* Run folders: one configuration each. */
#include <stdio.h>
#include <string.h>

#include "train/parts.h"

/* Values that change how a job is run but not what comes out; they may differ when it is continued. */
static const char *const harmless[] = {
    "threads", "json", "quiet", "out", "run", "checkpoint-every", "workers",
};

static bool is_harmless(const char *key) {
    for (size_t i = 0; i < sizeof harmless / sizeof *harmless; i++)
        if (!strcmp(key, harmless[i])) return true;
    return false;
}

static void describe(const json *v, buf *out) {
    char text[32];
    if (!v) { buf_puts(out, "nothing"); return; }
    switch (v->type) {
    case JSON_NULL:   buf_puts(out, "null"); break;
    case JSON_BOOL:   buf_puts(out, v->boolean ? "true" : "false"); break;
    case JSON_NUMBER: number_print(text, v->number); buf_puts(out, text); break;
    case JSON_STRING: buf_printf(out, "\"%.200s\"", v->text); break;
    case JSON_ARRAY:  buf_printf(out, "a list of %d", v->count); break;
    case JSON_OBJECT: buf_printf(out, "a group of %d", v->count); break;
    }
}

static bool differs(const char *key, const json *old, const json *now, err *e) {
    buf a = {0}, b = {0};
    describe(old, &a);
    describe(now, &b);
    err_set(e, ERR_CONFIG, "\"%s\" was %s and is now %s; continue with the same values or use another "
            "run folder", key, a.data ? a.data : "", b.data ? b.data : "");
    buf_free(&a);
    buf_free(&b);
    return false;
}

static bool same_value(const json *a, const json *b) {
    return a->type == b->type
        && (a->type != JSON_NUMBER || a->number == b->number)
        && (a->type != JSON_BOOL || a->boolean == b->boolean)
        && (a->type != JSON_STRING || !strcmp(a->text, b->text));
}

/* Members of b that a lacks. */
static bool nothing_new(const json *a, const json *b, err *e) {
    for (const json *m = b->child; m; m = m->next)
        if (!is_harmless(m->key) && !json_get(a, m->key)) return differs(m->key, NULL, m, e);
    return true;
}

static bool same(const char *key, const json *a, const json *b, err *e) {
    if (!b || !same_value(a, b)) return differs(key, a, b, e);
    if (a->type == JSON_ARRAY && a->count != b->count) return differs(key, a, b, e);
    const json *item = b->child;
    for (const json *m = a->child; m; m = m->next) {
        if (a->type == JSON_OBJECT && is_harmless(m->key)) continue;
        if (!same(m->key ? m->key : key, m, m->key ? json_get(b, m->key) : item, e)) return false;
        if (!m->key) item = item->next;
    }
    return a->type != JSON_OBJECT || nothing_new(a, b, e);
}

static bool compare_config(const char *path, const char *config_json, err *e) {
    json *old = json_read(path, e);
    json *now = old ? json_parse(config_json, strlen(config_json), e) : NULL;
    bool ok = old || err_note(e, "the run folder cannot be continued, use another");
    ok = ok && now && (same("config", old, now, e) || err_note(e, "%s", path));
    json_free(old);
    json_free(now);
    return ok;
}

bool run_dir_open(const char *dir, const char *config_json, err *e) {
    char config[4096], env[4096];
    if (!path_join(config, dir, "config.json", e) || !path_join(env, dir, "env.json", e)
        || !file_make_dirs(dir, e)) return false;
    if (file_exists(config)) return compare_config(config, config_json, e);

    buf b = {0};
    core_describe(&b);
    buf_puts(&b, "\n");
    bool ok = (!b.failed || err_set(e, ERR_NOMEM, "out of memory"))
           && file_write(env, b.data, b.len, e);
    buf_free(&b);
    size_t len = strlen(config_json);
    buf_puts(&b, config_json);
    if (!len || config_json[len - 1] != '\n') buf_puts(&b, "\n");
    ok = ok && (!b.failed || err_set(e, ERR_NOMEM, "out of memory"))
            && file_write(config, b.data, b.len, e);
    buf_free(&b);
    return ok;
}

bool run_dir_log(const char *dir, const char *text, err *e) {
    char path[4096];
    return path_join(path, dir, "log.txt", e) && log_line(path, text, e);
}
