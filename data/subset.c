/* Class-balanced orders of a set: every class is shuffled by itself, then the classes are dealt out
 * in turn. The order depends on labels and seed alone, so disjoint ranges are disjoint subsets. */
#include "data/parts.h"

bool balanced_order(const int32_t *label, int64_t count, int classes, uint64_t seed, int64_t from,
                    int64_t n, int32_t *out, err *e) {
    bool ok = false;
    int32_t *member = mem_new((size_t)count, sizeof *member, e); /* by class, one after another */
    int64_t *start = member ? mem_new((size_t)classes + 1, sizeof *start, e) : NULL;
    int64_t *fill = start ? mem_new((size_t)classes, sizeof *fill, e) : NULL;
    if (!fill) goto done;
    for (int64_t i = 0; i < count; i++) start[label[i] + 1]++;
    for (int c = 0; c < classes; c++) start[c + 1] += fill[c] = start[c];
    for (int64_t i = 0; i < count; i++) member[fill[label[i]]++] = (int32_t)i;
    for (int c = 0; c < classes; c++) {
        rng r = rng_at(seed, RNG_SPLIT, 0, (uint64_t)c);
        rng_shuffle(&r, member + start[c], start[c + 1] - start[c]);
    }
    int64_t dealt = 0;
    for (int64_t round = 0; dealt < from + n; round++)
        for (int c = 0; c < classes && dealt < from + n; c++) {
            if (start[c] + round >= start[c + 1]) continue;
            if (dealt >= from) out[dealt - from] = member[start[c] + round];
            dealt++;
        }
    ok = true;
done:
    mem_free(fill);
    mem_free(start);
    mem_free(member);
    return ok;
}

bool data_pick(const data_set *s, uint64_t seed, int64_t from, int64_t n, int32_t *index, err *e) {
    int64_t count = data_count(s);
    if (from < 0 || n < 0 || from > count || n > count - from)
        return err_set(
            e, ERR_CONFIG,
            "%lld images from number %lld of the balanced order are wanted, there are %lld",
            (long long)n, (long long)from, (long long)count);
    bool ok = false;
    int classes = data_classes(s);
    int32_t *label = mem_new((size_t)count, sizeof *label, e);
    int64_t *have = label ? mem_new((size_t)classes, sizeof *have, e) : NULL;
    if (!have) goto done;
    for (int64_t i = 0; i < count; i++) have[label[i] = data_label(s, i)]++;
    for (int c = 0; c < classes; c++)
        if (have[c] < 2) {
            err_set(e, ERR_DATA, "class %s has %lld images, a balanced subset wants two or more",
                    data_class_name(s, c), (long long)have[c]);
            goto done;
        }
    ok = balanced_order(label, count, classes, seed, from, n, index, e);
done:
    mem_free(have);
    mem_free(label);
    return ok;
}
