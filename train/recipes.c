/* Training recipes: the numbers of the papers, one row each. A flag of the command line overrides
 * its number. The schedule is always per iteration. */
#include <math.h>
#include <string.h>

#include "train/train.h"

#define SMALL_IMAGES .augment = { .pad = 4, .hflip = 0.5 }
#define IMAGENET     .augment = { .rrc_min = 0.08, .hflip = 0.5 }
#define SGD          .opt = OPT_SGD, .momentum = 0.9, .beta2 = 0.999, .opt_eps = 1e-8

const train_recipe train_recipes[] = {
    { .name = "cifar-resnet",
      .source = "Zagoruyko and Komodakis 2016, with the cosine of Loshchilov and Hutter 2017",
      .epochs = 200, .batch = 128, SGD, .lr = 0.1, .nesterov = true, .weight_decay = 5e-4,
      .sched = SCHED_COSINE, .warmup_epochs = 1, .temperature = 1, SMALL_IMAGES },

    { .name = "cifar-resnet-step",
      .source = "He et al. 2016, section 4.2: a tenth at 32 000 and 48 000 of 64 000 iterations",
      .epochs = 164, .batch = 128, SGD, .lr = 0.1, .weight_decay = 1e-4,
      .sched = SCHED_STEP, .temperature = 1, SMALL_IMAGES },

    { .name = "finetune",
      .source = "this project: a short, gentle continuation for pruned networks on small images",
      .epochs = 10, .batch = 128, SGD, .lr = 0.01, .nesterov = true, .weight_decay = 1e-4,
      .sched = SCHED_COSINE, .warmup_epochs = 1, .temperature = 1, SMALL_IMAGES },

    { .name = "imagenet",
      .source = "He et al. 2016, section 3.4, for one machine: batch and rate by Goyal et al. 2017, cosine",
      .epochs = 90, .batch = 64, SGD, .lr = 0.025, .nesterov = true, .weight_decay = 1e-4,
      .sched = SCHED_COSINE, .warmup_epochs = 5, .smoothing = 0.1, .temperature = 1, IMAGENET },

    { .name = "transfer",
      .source = "this project: finetune for photographs and a new head",
      .epochs = 10, .batch = 64, SGD, .lr = 0.005, .nesterov = true, .weight_decay = 1e-4,
      .sched = SCHED_COSINE, .warmup_epochs = 1, .temperature = 1, IMAGENET },

    { .name = "importance",
      .source = "LayerMerge 2024: the short fine-tuning behind one row of the importance table",
      .epochs = 1, .batch = 256, SGD, .lr = 0.1, .nesterov = true, .weight_decay = 1e-5,
      .decay_all = true, .sched = SCHED_COSINE, .temperature = 1, IMAGENET },

    { .name = "resnet34",
      .source = "LayerMerge 2024, ResNet-34 (batch 8 x 128; the reference's cosine moves once per epoch)",
      .epochs = 90, .batch = 1024, .opt = OPT_SGD, .lr = 1.024, .momentum = 0.875,
      .beta2 = 0.999, .opt_eps = 1e-8, .weight_decay = 1.0 / 32768,
      .sched = SCHED_COSINE, .warmup_epochs = 8, .smoothing = 0.1, .temperature = 1, IMAGENET },

    { .name = "mobilenetv2-1.0",
      .source = "LayerMerge 2024, MobileNetV2-1.0",
      .epochs = 180, .batch = 256, SGD, .lr = 0.05, .nesterov = true, .weight_decay = 1e-5,
      .decay_all = true, .sched = SCHED_COSINE, .temperature = 1, IMAGENET },

    { .name = "mobilenetv2-1.4",
      .source = "LayerMerge 2024, MobileNetV2-1.4 (there with bicubic interpolation)",
      .epochs = 180, .batch = 256, SGD, .lr = 0.1, .nesterov = true, .weight_decay = 1e-5,
      .decay_all = true, .sched = SCHED_COSINE, .smoothing = 0.1, .clip = 5, .temperature = 1,
      .augment = { .rrc_min = 0.08, .hflip = 0.5, .erase = 0.25,
                   .aa = { .n = 2, .m = 5, .mstd = 0.5, .mmax = 10, .inc = 1, .p = 0.5 } } },

    { .name = "vgg19_bn",
      .source = "Kim et al. 2023, VGG19-BN",
      .epochs = 20, .batch = 256, SGD, .lr = 0.01, .nesterov = true, .weight_decay = 1e-5,
      .decay_all = true, .sched = SCHED_COSINE, .temperature = 1, IMAGENET },

    { .name = NULL },
};

/* Where none is named. The papers' rows above are for their clusters: ask for them by name. */
static const struct { bool photographs, trained; const char *recipe; } ours[] = {
    { false, false, "cifar-resnet" }, { false, true, "finetune" },
    { true,  false, "imagenet" },     { true,  true, "transfer" },
};
enum { SMALL = 64 };             /* sides up to this are small images */

const train_recipe *train_recipe_find(const char *name) {
    for (const train_recipe *r = train_recipes; r->name; r++)
        if (!strcmp(r->name, name)) return r;
    return NULL;
}

static const train_recipe *unknown(const char *name, err *e) {
    buf b = {0};
    for (const train_recipe *r = train_recipes; r->name; r++) buf_printf(&b, " %s", r->name);
    err_set(e, ERR_USAGE, "--recipe %s: there are%s", name, b.data ? b.data : "");
    buf_free(&b);
    return NULL;
}

const train_recipe *train_recipe_for(const char *name, const nn_graph *g, bool trained, err *e) {
    if (name) {
        const train_recipe *r = train_recipe_find(name);
        return r ? r : unknown(name, e);
    }
    const nn_node *in = g ? nn_input(g, 0) : NULL;
    bool photographs = in && (in->dim[1] > SMALL || in->dim[2] > SMALL);
    int i = 0;
    while (ours[i].photographs != photographs || ours[i].trained != trained) i++;
    return train_recipe_find(ours[i].recipe);
}

void train_recipe_shorten(train_recipe *r, double epochs) {
    r->epochs = epochs;
    r->warmup_epochs = fmin(r->warmup_epochs, epochs / 4);
}
