/* The learning rate as a function of the step. */
#include <math.h>

#include "train/parts.h"

static const double pi = 3.14159265358979323846;

double schedule_lr(const train_recipe *r, int64_t step, int64_t steps, int64_t batches) {
    double warm = round(r->warmup_epochs * (double)batches);
    if (warm > (double)steps) warm = (double)steps;
    if ((double)step < warm) return r->lr * (double)(step + 1) / warm;   /* no step is wasted on 0 */

    double s = (double)step;
    switch (r->sched) {
    case SCHED_COSINE:
        return r->lr * 0.5 * (1 + cos(pi * (s - warm) / ((double)steps - warm)));
    case SCHED_STEP:
        return r->lr * (2 * step >= steps ? 0.1 : 1) * (4 * step >= 3 * steps ? 0.1 : 1);
    case SCHED_CONSTANT:
        break;
    }
    return r->lr;
}
