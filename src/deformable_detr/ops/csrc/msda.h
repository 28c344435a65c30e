/* Arguments of one call of multi-scale deformable attention (arXiv 2010.04159, section 4.1), filled by ops/cpu.py.
 *
 * All arrays are dense and in C order. `real` is float, or double if the values are double. There are two forms. With a
 * `projection` the locations and weights are computed on the way, around `reference`. Without one they are given. */
#ifndef MSDA_H
#define MSDA_H

#include <stdint.h>

enum { KIND_REAL = 0, KIND_HALF = 1, KIND_BFLOAT = 2 };

/* torch_parallel_for of PyTorch's stable C interface: returns 0, or another number if it failed. */
typedef int (*msda_parallel_for)(int64_t begin, int64_t end, int64_t grain, void (*body)(int64_t, int64_t, void *),
                                 void *context);

typedef struct {
    int64_t batch, positions, heads, head_dim, queries, levels;
    int64_t kind;             /* storage of value, grad, output and grad_value: KIND_... */
    int64_t reference_size;   /* 2: points, 4: boxes; 0: the form without a projection */
    int64_t threads;          /* how many may work at once */
    const int64_t *shapes;    /* (levels, 2): height, width */
    const int64_t *points;    /* (levels,) */
    const void *value;        /* (batch, positions, heads, head_dim) */
    const void *locations;    /* real (batch, queries, heads, samples, 2): x, y in 0..1 */
    const void *weights;      /* real (batch, queries, heads, samples) */
    const void *reference;    /* real (batch, queries, levels, 2 or 4) */
    const void *projection;   /* real (batch, queries, heads * samples * 3): offsets, then logits */
    const void *grad;         /* (batch, queries, heads, head_dim) */
    void *output;             /* (batch, queries, heads, head_dim) */
    void *grad_value;         /* as value, or NULL if not wanted; the same holds for those below */
    void *grad_locations;     /* as locations */
    void *grad_weights;       /* as weights */
    void *grad_reference;     /* as reference */
    void *grad_projection;    /* as projection; needed for grad_reference, too */
    msda_parallel_for parallel_for; /* NULL: work inline */
} msda_call;

#endif
