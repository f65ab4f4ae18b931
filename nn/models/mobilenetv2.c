/* MobileNetV2 (Sandler et al. 2018), names as in torchvision. */
#include "nn/models/models.h"

/* Table 2 of the paper. */
static const struct { int expand, channels, repeat, stride; } stages[] = {
    { 1, 16, 1, 1 }, { 6, 24, 2, 2 }, { 6, 32, 3, 2 }, { 6, 64, 4, 2 },
    { 6, 96, 3, 1 }, { 6, 160, 3, 2 }, { 6, 320, 1, 1 },
};
enum { STAGES = sizeof stages / sizeof *stages, STEM = 32, LAST = 1280 };

/* The nearest multiple of 8 that is not below 90 % of the wanted width. */
static int channels(int c, double width)
{
    double want = c * width;
    int n = (int)(want + 4) / 8 * 8;
    if (n < 8)
        n = 8;
    return n < 0.9 * want ? n + 8 : n;
}

/* at.0 at.1 at.2: convolution, norm, ReLU6. */
static int conv_unit(nn_graph *g, const char *at, int in, int out, int k, int stride, int groups, bool fixed, err *e)
{
    int x = nn_add_conv(g, model_name_of("%s.0", at).s, in, out, k, stride, k / 2, groups, false, fixed, e);
    x = nn_add_norm(g, model_name_of("%s.1", at).s, x, e);
    return nn_add_op(g, NN_OP_relu6, model_name_of("%s.2", at).s, x, e);
}

/* Inverted residual: 1x1 expand, 3x3 depthwise, linear 1x1 project. */
static int block(nn_graph *g, int number, int in, int expand, int out, int stride, err *e)
{
    if (in < 0)
        return -1;
    int c = (int)g->node[in].dim[3], wide = c * expand, unit = 0, x = in;
    const model_name at = model_name_of("features.%d.conv", number);
    if (expand != 1)
        x = conv_unit(g, model_name_of("%s.%d", at.s, unit++).s, x, wide, 1, 1, 1, false, e);
    x = conv_unit(g, model_name_of("%s.%d", at.s, unit++).s, x, wide, 3, stride, wide, false, e);
    x = nn_add_conv(g, model_name_of("%s.%d", at.s, unit++).s, x, out, 1, 1, 0, 1, false, false, e);
    x = nn_add_norm(g, model_name_of("%s.%d", at.s, unit++).s, x, e);
    if (stride == 1 && c == out)
        x = nn_add_add(g, model_name_of("features.%d.add", number).s, x, in, e);
    return x;
}

static nn_graph *build(const nn_build *given, err *e)
{
    nn_build b = *given;
    nn_graph *g = model_start(&nn_model_mobilenetv2, &b, NN_BARRIER_STRIDE_1X1, e);
    if (!g)
        return NULL;
    bool small = model_is_small(&b);
    int number = 1, x = conv_unit(g, "features.0", 0, channels(STEM, b.width), 3, small ? 1 : 2, 1, true, e);
    for (int s = 0; s < STAGES; s++)
        for (int i = 0; i < stages[s].repeat; i++) {
            int stride = i || (small && s == 1) ? 1 : stages[s].stride;
            x = block(g, number++, x, stages[s].expand, channels(stages[s].channels, b.width), stride, e);
        }
    int last = channels(LAST, b.width > 1 ? b.width : 1);
    x = conv_unit(g, model_name_of("features.%d", number).s, x, last, 1, 1, 1, true, e);
    x = nn_add_op(g, NN_OP_globalpool, "avgpool", x, e);
    nn_attr dropout = { .p = 0.2f };
    x = nn_node_add(g, NN_OP_dropout, "classifier.0", &x, 1, &dropout, e);
    return model_finish(g, nn_add_linear(g, "classifier.1", x, b.classes, true, e));
}

const nn_model nn_model_mobilenetv2 = {
    "mobilenetv2", "MobileNetV2, any --width, 3.5 M parameters at 1.0", { 1000, 224, 224, 3, 1 }, build,
};
