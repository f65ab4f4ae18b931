/* VGG with batch norm (Simonyan and Zisserman 2015), names as in torchvision. */
#include "nn/models/models.h"

enum { POOL = -1, END = 0 };
/* Output channels of the 3x3 convolutions; POOL is a 2x2 max-pool. */
static const int vgg19[] = { 64, 64, POOL, 128, 128, POOL, 256, 256, 256, 256, POOL,
                             512, 512, 512, 512, POOL, 512, 512, 512, 512, POOL, END };
static const int vgg8[] = { 32, 32, POOL, 64, 64, POOL, 128, 128, 128, POOL, END };

/* features.N counts convolutions, norms, activations and pools. A pool of maps that are one pixel
 * high or wide already is left out; its number is not. */
static int features(nn_graph *g, const int *table, err *e)
{
    int x = 0, n = 0;
    for (const int *c = table; *c != END && x >= 0; c++) {
        if (*c != POOL) {
            x = nn_add_conv(g, model_name_of("features.%d", n++).s, x, *c, 3, 1, 1, 1, true, false, e);
            x = nn_add_norm(g, model_name_of("features.%d", n++).s, x, e);
            x = nn_add_op(g, NN_OP_relu, model_name_of("features.%d", n++).s, x, e);
            continue;
        }
        nn_attr pool = { .k = { 2, 2 }, .stride = { 2, 2 } };
        if (g->node[x].dim[1] > 1 && g->node[x].dim[2] > 1)
            x = nn_node_add(g, NN_OP_maxpool, model_name_of("features.%d", n).s, &x, 1, &pool, e);
        n++;
    }
    return x;
}

static int small_head(nn_graph *g, int x, int classes, err *e)
{
    x = nn_add_op(g, NN_OP_globalpool, "avgpool", x, e);
    return nn_add_linear(g, "classifier", x, classes, true, e);
}

/* Average pooling to 7x7, then 4096-4096-classes. */
static int large_head(nn_graph *g, int x, int classes, err *e)
{
    if (x < 0)
        return -1;
    int h = (int)g->node[x].dim[1], w = (int)g->node[x].dim[2];
    if (h % 7 || w % 7) {
        err_set(e, ERR_CONFIG, "%s: maps of %d x %d before the classifier do not divide into 7 x 7; "
                "use an input of at most 64 pixels or a multiple of 224", g->arch, h, w);
        return -1;
    }
    nn_attr pool = { .k = { h / 7, w / 7 }, .stride = { h / 7, w / 7 } }, dropout = { .p = 0.5f };
    if (h > 7 || w > 7)
        x = nn_node_add(g, NN_OP_avgpool, "avgpool", &x, 1, &pool, e);
    for (int i = 0; i < 6; i += 3) {
        x = nn_add_linear(g, model_name_of("classifier.%d", i).s, x, 4096, true, e);
        x = nn_add_op(g, NN_OP_relu, model_name_of("classifier.%d", i + 1).s, x, e);
        x = nn_node_add(g, NN_OP_dropout, model_name_of("classifier.%d", i + 2).s, &x, 1, &dropout, e);
    }
    return nn_add_linear(g, "classifier.6", x, classes, true, e);
}

static nn_graph *build(const nn_model *m, const int *table, nn_build b, err *e)
{
    nn_graph *g = model_start(m, &b, NN_BARRIER_NONE, e);
    if (!g)
        return NULL;
    bool small = table == vgg8 || model_is_small(&b);
    int x = features(g, table, e);
    return model_finish(g, small ? small_head(g, x, b.classes, e) : large_head(g, x, b.classes, e));
}

static nn_graph *build8(const nn_build *b, err *e) { return build(&nn_model_vgg8_bn, vgg8, *b, e); }
static nn_graph *build19(const nn_build *b, err *e) { return build(&nn_model_vgg19_bn, vgg19, *b, e); }

const nn_model nn_model_vgg8_bn = {
    "vgg8_bn", "small VGG for small images, 0.4 M parameters", { 10, 32, 32, 3, 1 }, build8,
};
const nn_model nn_model_vgg19_bn = {
    "vgg19_bn", "VGG-19 with batch norm, 143.7 M parameters", { 1000, 224, 224, 3, 1 }, build19,
};
