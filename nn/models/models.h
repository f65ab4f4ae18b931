/* Shared by the builders, not for others. A builder is a table of sizes and a short function that
 * walks it; the rows below are collected in models.c. */
#ifndef LM_MODELS_H
#define LM_MODELS_H

#include "nn/nn.h"

extern const nn_model nn_model_resnet20, nn_model_resnet56, nn_model_resnet18, nn_model_resnet34,
    nn_model_resnet50, nn_model_mobilenetv2, nn_model_vgg8_bn, nn_model_vgg19_bn;

/* A graph with its preprocessing and an input node (id 0, "input"). Zeros in *b become the model's
 * standard values; values that no network can have are refused. */
nn_graph *model_start(const nn_model *m, nn_build *b, nn_barrier barrier, err *e);
/* The graph with node `last` (-1: the builder failed) as its output. */
nn_graph *model_finish(nn_graph *g, int last);
/* Inputs up to 64 pixels: ImageNet's networks drop their early strides, as is usual for CIFAR. */
bool model_is_small(const nn_build *b);

typedef struct { char s[96]; } model_name;
/* model_name_of("layer%d.%d", 1, 0).s lives as long as the expression it stands in. */
model_name model_name_of(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

#endif
