/* What a run tells: metrics.csv, one line per epoch in shortest decimals, an unknown value being an
 * empty cell; and log.txt. */
#include <math.h>
#include <stdio.h>
#include <time.h>

#include "train/parts.h"

static void cell(buf *csv, double v) {
    char text[32] = "";
    if (isfinite(v)) number_print(text, v);
    buf_printf(csv, ",%s", text);
}

void metrics_add(buf *csv, const metrics_row *r, const eval_result *val) {
    if (!csv->len)
        buf_puts(csv, "step,epoch,lr,train_loss,val_loss,val_top1,val_top5,images_per_s,seconds\n");
    buf_printf(csv, "%lld", (long long)r->step);
    cell(csv, r->epoch);
    cell(csv, r->lr);
    cell(csv, r->train_loss);
    if (val) cell(csv, val->loss), cell(csv, val->top1), cell(csv, val->top5);
    else buf_puts(csv, ",,,");
    cell(csv, round(r->images_per_s * 10) / 10);
    cell(csv, round(r->seconds * 1000) / 1000);
    buf_puts(csv, "\n");
}

bool path_join(char out[4096], const char *dir, const char *name, err *e) {
    int n = snprintf(out, 4096, "%s/%s", dir, name);
    if (n < 0 || n >= 4096)
        return err_set(e, ERR_CONFIG, "the path %.60s.../%s is too long", dir, name);
    return true;
}

bool log_line(const char *path, const char *text, err *e) {
    char stamp[32], line[2048];
    time_t now = time(NULL);
    struct tm tm;
    gmtime_r(&now, &tm);
    strftime(stamp, sizeof stamp, "%Y-%m-%dT%H:%M:%SZ", &tm);
    snprintf(line, sizeof line, "%s %s", stamp, text);
    return file_append_line(path, line, e);
}
