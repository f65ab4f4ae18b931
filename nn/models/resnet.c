/* Residual networks (He et al. 2016): the CIFAR ones with parameter-free shortcuts, names as in
 * akamaster's pretrained weights, and the ImageNet ones with projections, names as in torchvision. */
#include "nn/models/models.h"

typedef struct {
    int blocks[4];               /* per stage; 0: no such stage */
    int width;                   /* of the first stage, doubled in each of the next */
    bool bottleneck;             /* 1x1, 3x3, 1x1 with four times the width, else two 3x3 */
    bool cifar;                  /* 3x3 stem, shortcut option A */
} resnet;

static const resnet resnet20 = { { 3, 3, 3 }, 16, false, true };
static const resnet resnet56 = { { 9, 9, 9 }, 16, false, true };
static const resnet resnet18 = { { 2, 2, 2, 2 }, 64, false, false };
static const resnet resnet34 = { { 3, 4, 6, 3 }, 64, false, false };
static const resnet resnet50 = { { 3, 4, 6, 3 }, 64, true, false };

/* conv<i> and bn<i> of a block: the numbers are torchvision's. */
static int conv_norm(nn_graph *g, const char *at, int i, int in, int out, int k, int stride, err *e)
{
    int x = nn_add_conv(g, model_name_of("%s.conv%d", at, i).s, in, out, k, stride, k / 2, 1, false, false, e);
    return nn_add_norm(g, model_name_of("%s.bn%d", at, i).s, x, e);
}

static int relu(nn_graph *g, const char *at, int i, int in, err *e)
{
    return nn_add_op(g, NN_OP_relu, model_name_of("%s.relu%d", at, i).s, in, e);
}

/* Every stride-th pixel, the missing channels zero, half of them on each side. */
static int option_a(nn_graph *g, const char *at, int in, int out, int stride, err *e)
{
    int more = out - (int)g->node[in].dim[3];
    nn_attr attr = { .stride = { stride, stride }, .chan = { more / 2, more - more / 2 } };
    return nn_node_add(g, NN_OP_slice, model_name_of("%s.shortcut", at).s, &in, 1, &attr, e);
}

static int projection(nn_graph *g, const char *at, int in, int out, int stride, err *e)
{
    int x = nn_add_conv(g, model_name_of("%s.downsample.0", at).s, in, out, 1, stride, 0, 1, false, true, e);
    return nn_add_norm(g, model_name_of("%s.downsample.1", at).s, x, e);
}

static int block(nn_graph *g, const resnet *r, const char *at, int in, int width, int stride, err *e)
{
    if (in < 0)
        return -1;
    int out = r->bottleneck ? 4 * width : width, x, skip = in;
    if (r->bottleneck) {
        x = relu(g, at, 1, conv_norm(g, at, 1, in, width, 1, 1, e), e);
        x = relu(g, at, 2, conv_norm(g, at, 2, x, width, 3, stride, e), e);
        x = conv_norm(g, at, 3, x, out, 1, 1, e);
    } else {
        x = relu(g, at, 1, conv_norm(g, at, 1, in, width, 3, stride, e), e);
        x = conv_norm(g, at, 2, x, out, 3, 1, e);
    }
    if (stride != 1 || g->node[in].dim[3] != out)
        skip = r->cifar ? option_a(g, at, in, out, stride, e) : projection(g, at, in, out, stride, e);
    x = nn_add_add(g, model_name_of("%s.add", at).s, x, skip, e);
    return relu(g, at, r->bottleneck ? 3 : 2, x, e);
}

static int stem(nn_graph *g, const resnet *r, bool small, err *e)
{
    int k = small ? 3 : 7, stride = small ? 1 : 2;
    int x = nn_add_conv(g, "conv1", 0, r->width, k, stride, k / 2, 1, false, true, e);
    x = nn_add_op(g, NN_OP_relu, "relu", nn_add_norm(g, "bn1", x, e), e);
    nn_attr pool = { .k = { 3, 3 }, .stride = { 2, 2 }, .pad = { 1, 1, 1, 1 } };
    return small ? x : nn_node_add(g, NN_OP_maxpool, "maxpool", &x, 1, &pool, e);
}

static nn_graph *build(const nn_model *m, const resnet *r, nn_build b, err *e)
{
    nn_graph *g = model_start(m, &b, NN_BARRIER_STRIDE, e);
    if (!g)
        return NULL;
    int x = stem(g, r, r->cifar || model_is_small(&b), e);
    for (int s = 0; s < 4; s++)
        for (int i = 0; i < r->blocks[s]; i++)
            x = block(g, r, model_name_of("layer%d.%d", s + 1, i).s, x, r->width << s, s && !i ? 2 : 1, e);
    x = nn_add_op(g, NN_OP_globalpool, "avgpool", x, e);
    return model_finish(g, nn_add_linear(g, r->cifar ? "linear" : "fc", x, b.classes, true, e));
}

static nn_graph *build20(const nn_build *b, err *e) { return build(&nn_model_resnet20, &resnet20, *b, e); }
static nn_graph *build56(const nn_build *b, err *e) { return build(&nn_model_resnet56, &resnet56, *b, e); }
static nn_graph *build18(const nn_build *b, err *e) { return build(&nn_model_resnet18, &resnet18, *b, e); }
static nn_graph *build34(const nn_build *b, err *e) { return build(&nn_model_resnet34, &resnet34, *b, e); }
static nn_graph *build50(const nn_build *b, err *e) { return build(&nn_model_resnet50, &resnet50, *b, e); }

const nn_model nn_model_resnet20 = { "resnet20", "CIFAR ResNet, 0.27 M parameters", { 10, 32, 32, 3, 1 }, build20 };
const nn_model nn_model_resnet56 = { "resnet56", "CIFAR ResNet, 0.85 M parameters", { 10, 32, 32, 3, 1 }, build56 };
const nn_model nn_model_resnet18 = { "resnet18", "ResNet-18, 11.7 M parameters", { 1000, 224, 224, 3, 1 }, build18 };
const nn_model nn_model_resnet34 = { "resnet34", "ResNet-34, 21.8 M parameters", { 1000, 224, 224, 3, 1 }, build34 };
const nn_model nn_model_resnet50 = { "resnet50", "ResNet-50, 25.6 M parameters", { 1000, 224, 224, 3, 1 }, build50 };
