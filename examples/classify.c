/* The likeliest classes of an image, prepared as the model file says:
 *     cc classify.c $(pkg-config --cflags --libs layermerge) -o classify && ./classify MODEL IMAGE */
#include <layermerge.h>
#include <stdio.h>
#include <stdlib.h>

static int fail(void)
{
    fprintf(stderr, "classify: %s\n", lm_error());
    return 1;
}

int main(int argc, char **argv)
{
    lm_model *m = argc == 3 ? lm_load(argv[1]) : NULL;
    if (argc != 3)
        return fprintf(stderr, "usage: classify MODEL IMAGE\n"), 64;
    if (!m || lm_plan(m, 1, 0))
        return fail();
    lm_shape in = lm_input(m), out = lm_output(m);
    float *x = calloc((size_t)in.c * in.h * in.w, sizeof *x);
    float *y = calloc((size_t)out.c * out.h * out.w, sizeof *y);
    if (!x || !y || lm_image(m, argv[2], x) || lm_run(m, 1, x, y))
        return fail();
    for (int rank = 0; rank < 5 && rank < out.c; rank++) {
        int best = 0;
        for (int i = 1; i < out.c; i++)
            best = y[i] > y[best] ? i : best;
        printf("%8.3f  %4d  %s\n", y[best], best, lm_label(m, best) ? lm_label(m, best) : "");
        y[best] = -1e38f;
    }
    lm_free(m);
    free(x);
    free(y);
    return 0;
}
