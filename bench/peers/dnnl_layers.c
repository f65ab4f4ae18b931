/* oneDNN 2, layer by layer: forward inference, bias and ReLU fused, in the layouts it likes best. Reads lines
 *     C O H K STRIDE GROUPS BATCH
 * (a square map, padding K/2) and answers each with the milliseconds of a call, the tenth percentile as in
 * bench_conv, and the name of the implementation. Threads are OpenMP's.
 *     cc -O2 -fopenmp dnnl_layers.c -ldnnl -o dnnl_layers */
#include <dnnl.h>

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { SRC, WEIGHTS, BIAS, DST, ARGS };

static void need(dnnl_status_t status, const char *what)
{
    if (status == dnnl_success) return;
    fprintf(stderr, "dnnl_layers: %s: status %d\n", what, status);
    exit(1);
}
#define NEED(call) need(call, #call)

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Memory of that layout, filled with numbers between -1/2 and 1/2. */
static dnnl_memory_t filled(const dnnl_memory_desc_t *layout, dnnl_engine_t engine)
{
    dnnl_memory_t m;
    void *p;
    NEED(dnnl_memory_create(&m, layout, engine, DNNL_MEMORY_ALLOCATE));
    NEED(dnnl_memory_get_data_handle(m, &p));
    for (size_t i = 0, n = dnnl_memory_desc_get_size(layout) / sizeof(float); i < n; i++) ((float *)p)[i] = (float)(i * 37 % 101) / 101 - 0.5f;
    return m;
}

static void layer(dnnl_engine_t engine, dnnl_stream_t stream, int c, int o, int h, int k, int stride, int groups, int batch)
{
    int out = (h + 2 * (k / 2) - k) / stride + 1;
    dnnl_dims_t pad = { k / 2, k / 2 }, strides = { stride, stride }, x = { batch, c, h, h }, y = { batch, o, out, out };
    dnnl_dims_t grouped = { groups, o / groups, c / groups, k, k }, dense = { o, c, k, k }, b = { o };
    dnnl_memory_desc_t layout[ARGS];
    NEED(dnnl_memory_desc_init_by_tag(&layout[SRC], 4, x, dnnl_f32, dnnl_format_tag_any));
    NEED(dnnl_memory_desc_init_by_tag(&layout[DST], 4, y, dnnl_f32, dnnl_format_tag_any));
    NEED(dnnl_memory_desc_init_by_tag(&layout[WEIGHTS], groups > 1 ? 5 : 4, groups > 1 ? grouped : dense, dnnl_f32, dnnl_format_tag_any));
    NEED(dnnl_memory_desc_init_by_tag(&layout[BIAS], 1, b, dnnl_f32, dnnl_a));

    dnnl_convolution_desc_t conv;
    dnnl_post_ops_t relu;
    dnnl_primitive_attr_t attr;
    dnnl_primitive_desc_t desc;
    dnnl_primitive_t primitive;
    NEED(dnnl_convolution_forward_desc_init(&conv, dnnl_forward_inference, dnnl_convolution_auto, &layout[SRC], &layout[WEIGHTS],
                                            &layout[BIAS], &layout[DST], strides, pad, pad));
    NEED(dnnl_post_ops_create(&relu));
    NEED(dnnl_post_ops_append_eltwise(relu, 1, dnnl_eltwise_relu, 0, 0));
    NEED(dnnl_primitive_attr_create(&attr));
    NEED(dnnl_primitive_attr_set_post_ops(attr, relu));
    NEED(dnnl_primitive_desc_create(&desc, &conv, attr, engine, NULL));
    NEED(dnnl_primitive_create(&primitive, desc));

    static const struct { dnnl_query_t query; int index, name; } args[ARGS] = {
        [SRC] = { dnnl_query_src_md, 0, DNNL_ARG_SRC }, [WEIGHTS] = { dnnl_query_weights_md, 0, DNNL_ARG_WEIGHTS },
        [BIAS] = { dnnl_query_weights_md, 1, DNNL_ARG_BIAS }, [DST] = { dnnl_query_dst_md, 0, DNNL_ARG_DST },
    };
    dnnl_exec_arg_t arg[ARGS];
    for (int i = 0; i < ARGS; i++)
        arg[i] = (dnnl_exec_arg_t){ args[i].name, filled(dnnl_primitive_desc_query_md(desc, args[i].query, args[i].index), engine) };

    double t[200], total = 0;
    int n = 0;
    for (int warm = 0; warm < 3; warm++) NEED(dnnl_primitive_execute(primitive, stream, ARGS, arg));
    while (n < 5 || (n < 200 && total < 0.15)) {
        double start = seconds();
        NEED(dnnl_primitive_execute(primitive, stream, ARGS, arg));
        NEED(dnnl_stream_wait(stream));
        total += t[n] = seconds() - start;
        n++;
    }
    qsort(t, (size_t)n, sizeof *t, by_value);
    const char *name = "?";
    NEED(dnnl_primitive_desc_query(desc, dnnl_query_impl_info_str, 0, &name));
    printf("%.4f %s\n", t[n / 10] * 1e3, name);
    fflush(stdout);

    for (int i = 0; i < ARGS; i++) dnnl_memory_destroy(arg[i].memory);
    dnnl_primitive_destroy(primitive);
    dnnl_primitive_desc_destroy(desc);
    dnnl_primitive_attr_destroy(attr);
    dnnl_post_ops_destroy(relu);
}

int main(void)
{
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    NEED(dnnl_engine_create(&engine, dnnl_cpu, 0));
    NEED(dnnl_stream_create(&stream, engine, dnnl_stream_default_flags));
    int c, o, h, k, stride, groups, batch;
    while (scanf("%d %d %d %d %d %d %d", &c, &o, &h, &k, &stride, &groups, &batch) == 7)
        layer(engine, stream, c, o, h, k, stride, groups, batch);
    return 0;
}
