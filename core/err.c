/* Errors: a code and one sentence. */
#include "core/core.h"

#include <stdio.h>
#include <string.h>

/* A file name may hold anything; the sentence stays on one line. */
static void one_line(char *s) {
    for (; *s; s++)
        if ((unsigned char)*s < ' ' || *s == 127) *s = '?';
}

bool err_set(err *e, err_code code, const char *fmt, ...) {
    if (!e) return false;
    char text[sizeof e->msg];                 /* the arguments may point into e->msg */
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    one_line(text);
    e->code = code;
    memcpy(e->msg, text, sizeof text);
    return false;
}

bool err_note(err *e, const char *fmt, ...) {
    if (!e) return false;
    char text[2 * sizeof e->msg];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof e->msg, fmt, ap);
    va_end(ap);
    size_t n = strlen(text);
    snprintf(text + n, sizeof text - n, ": %s", e->msg);
    text[sizeof e->msg - 1] = '\0';
    one_line(text);
    memcpy(e->msg, text, sizeof e->msg);
    return false;
}
