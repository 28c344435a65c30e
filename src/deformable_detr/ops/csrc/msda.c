/* Multi-scale deformable attention (arXiv 2010.04159, section 4.1) on the CPU, in plain C without any library.
 *
 * This file is compiled once per instruction set, and there for float and for double: -DMSDA_NAME=... names the two
 * entry points, -DMSDA_DOUBLE chooses double.
 *
 * How a call goes: the forward pass hands out chunks of queries as tasks. For each query and head it finds the four
 * pixels around every sample, with their weights (`prepare` in simd.h), and sums them up (`gather_row`). The backward
 * pass hands out levels: a task collects the whole gradient of one map of one head, so no two threads write to the same
 * place. The passes over rows are in passes.h, the arithmetic in vectors in simd.h, the plans and tasks here. */
#include "msda.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#ifdef __linux__
#include <sys/mman.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define INLINE inline __attribute__((always_inline))
#ifdef MSDA_DOUBLE
typedef double real;
typedef int64_t ireal; /* a comparison of reals gives integers of their size */
#else
typedef float real;
typedef int32_t ireal;
#endif
#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)
#define ENTRY(name) JOIN(JOIN(msda, name), MSDA_NAME)

enum {
    BLOCK = 64,    /* samples that the backward pass prepares at once */
    ALIGNMENT = 64, /* bytes of a cache line */
    LARGE_PAGE = 2 << 20
};

/* Data of the samples that are the same for every query: one entry per sample, padded to whole vectors. */
typedef struct {
    int64_t samples, padded;                /* samples of a query and head, and that number rounded up */
    real *width, *height;                   /* size of the sample's map, for comparisons with places */
    ireal *columns, *rows, *start, *stride; /* size as integers, first position, bytes from one pixel to the next */
    real *aim; /* shift x, shift y, scale x, scale y: they turn given locations into pixels */
    int64_t *first_position, *first_sample; /* of each level */
} plan;

/* The four pixels around each sample, upper left, upper right, lower left, lower right: byte offsets and weights. */
typedef struct {
    ireal *offset;
    real *weight;
} corners;

/* One call with all that its workers share. */
typedef struct {
    const msda_call *call;
    plan plan;
    int64_t chunk; /* queries of a task */
    int64_t tasks, next; /* `next`: the first task that no worker has taken; only read and changed atomically */
    int failed; /* out of memory */
    int backward;
    int64_t image; /* image of the pass that is running */
    char *dense;   /* values of that image, head after head, where queries are as dense as pixels; else NULL */
    real *aim;     /* in that case also shift and scale of a projection's samples, (queries, 4, padded) */
    int64_t room; /* samples that a worker prepares at once */
    real *softmax; /* (batch, queries, heads, 2): highest logit, 1 / sum of exponentials */
} job;

/* Memory of one worker, which no other one reads or writes. */
typedef struct {
    char *memory;       /* the block that holds all of these */
    corners corners[2]; /* two sets: one is summed up while the pixels of the other are fetched */
    real *aim, *xy, *weights;
    /* The others are for the backward pass only. */
    real *share;       /* 1 / sum of exponentials, for each sample */
    real *dots;        /* products of gradient and pixel, (4, room) */
    real *found;       /* gradients of x, y and weight, (3, room) */
    real *row_grad;    /* gradient of one output row in full precision */
    real *grad_value;  /* gradient of one map, dense */
    char *value;       /* values of one map, dense */
    plan level;        /* plan of one level, all samples of a block */
} scratch;

static float as_float(uint32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

/* Half of a float, rounded to nearest, ties to even; for CPUs without an instruction for it. */
static inline uint16_t half_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) return sign | 0x7e00;
    if (magnitude >= 0x47800000) return sign | 0x7c00; /* 65536 and more */
    if (magnitude < 0x38800000) { /* below the smallest normal half: adding 0.5 rounds at the right bit */
        float sum = as_float(magnitude) + 0.5f;
        memcpy(&bits, &sum, 4);
        return sign | (bits - 0x3f000000);
    }
    return sign | ((magnitude + 0xfff + (magnitude >> 13 & 1) - 0x38000000) >> 13);
}

/* Plan of the backward pass, in which all samples of a block are in one map. */
static plan level_plan(const job *job, scratch *own, int64_t level, int64_t stride) {
    plan here = own->level;
    for (int64_t s = 0; s < here.padded; s++) {
        here.rows[s] = here.height[s] = job->call->shapes[2 * level];
        here.columns[s] = here.width[s] = job->call->shapes[2 * level + 1];
        here.start[s] = 0;
        here.stride[s] = stride;
        here.aim[s] = here.aim[here.padded + s] = (real)-0.5;
        here.aim[2 * here.padded + s] = here.width[s];
        here.aim[3 * here.padded + s] = here.height[s];
    }
    return here;
}

/* Lanes of a vector: WIDE fills the registers of the instruction set, NARROW half of them, for heads with few channels.
 * Without AVX there is one width. */
#if defined(__AVX512F__) && defined(MSDA_DOUBLE)
#define WIDE 8
#define NARROW 4
#elif defined(__AVX512F__)
#define WIDE 16
#define NARROW 8
#elif defined(__AVX2__) && defined(MSDA_DOUBLE)
#define WIDE 4
#define NARROW 2
#elif defined(__AVX2__)
#define WIDE 8
#define NARROW 4
#elif defined(MSDA_DOUBLE)
#define NARROW 2
#else
#define NARROW 4
#endif

#define LANES NARROW
#include "simd.h"
#include "passes.h"
#ifdef WIDE
#define LANES WIDE
#include "simd.h"
#include "passes.h"
#endif

#ifndef WIDE
#define WIDE NARROW
#endif
#define WITH_(lanes, name) name##_##lanes
#define WITH(lanes, name) WITH_(lanes, name)

/* One compiled copy for each width and storage: the compiler removes all branches on what is constant in a copy. */
#define COPY(lanes, suffix, kind)                                                                              \
    static void forward_##suffix(const job *job, scratch *own, int64_t a, int64_t b, int64_t g, int64_t h) {   \
        WITH(lanes, forward_rows)(job, own, a, b, g, h, kind);                                                 \
    }                                                                                                          \
    static void backward_##suffix(const job *job, scratch *own, int64_t i, int64_t h, int64_t l, int64_t _) {  \
        (void)_;                                                                                               \
        WITH(lanes, backward_level)(job, own, i, h, l, kind);                                                  \
    }
COPY(NARROW, narrow_real, KIND_REAL)
COPY(WIDE, wide_real, KIND_REAL)
#ifdef MSDA_DOUBLE
#define COPIES(name) {{name##_narrow_real}, {name##_wide_real}}
#define KINDS 1
#else
COPY(NARROW, narrow_half, KIND_HALF)
COPY(WIDE, wide_half, KIND_HALF)
COPY(NARROW, narrow_bfloat, KIND_BFLOAT)
COPY(WIDE, wide_bfloat, KIND_BFLOAT)
#define COPIES(name)                                                                                           \
    {{name##_narrow_real, name##_narrow_half, name##_narrow_bfloat},                                           \
     {name##_wide_real, name##_wide_half, name##_wide_bfloat}}
#define KINDS 3
#endif
typedef void (*piece)(const job *, scratch *, int64_t, int64_t, int64_t, int64_t);
static const piece FORWARD[2][KINDS] = COPIES(forward), BACKWARD[2][KINDS] = COPIES(backward);

/* Takes an aligned piece of a block; without a block it only counts the bytes. */
static void *take(char *block, int64_t *used, int64_t bytes) {
    void *piece = block ? block + *used : NULL;
    *used += (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    return piece;
}

/* Divides a block among the arrays of a worker and returns the bytes used. Called without a block, it only counts. */
static int64_t lay_out(char *block, const job *job, scratch *own) {
    const msda_call *call = job->call;
    int64_t used = 0, room = job->room, numbers = room * sizeof(real);
    for (int i = 0; i < 2; i++) {
        own->corners[i].offset = take(block, &used, 4 * numbers);
        own->corners[i].weight = take(block, &used, 4 * numbers);
    }
    /* The forward pass aims all queries of a task at once, unless that was done for the whole image before. */
    own->aim = take(block, &used, 4 * numbers * (job->backward || job->dense ? 1 : job->chunk));
    own->xy = take(block, &used, 2 * numbers);
    own->weights = take(block, &used, numbers);
    if (!job->backward) return used;
    own->share = take(block, &used, numbers);
    own->dots = take(block, &used, 4 * numbers);
    own->found = take(block, &used, 3 * numbers);
    own->row_grad = take(block, &used, call->head_dim * sizeof(real));
    own->level.padded = room;
    own->level.width = take(block, &used, numbers);
    own->level.height = take(block, &used, numbers);
    own->level.columns = take(block, &used, numbers);
    own->level.rows = take(block, &used, numbers);
    own->level.start = take(block, &used, numbers);
    own->level.stride = take(block, &used, numbers);
    own->level.aim = take(block, &used, 4 * numbers);
    /* The copy of one map and its gradient: room for the largest map. */
    int64_t largest = 0;
    for (int64_t l = 0; l < call->levels; l++) {
        int64_t size = call->shapes[2 * l] * call->shapes[2 * l + 1];
        largest = size > largest ? size : largest;
    }
    own->value = take(block, &used, largest * call->head_dim * sizeof(real));
    own->grad_value = take(block, &used, largest * call->head_dim * sizeof(real));
    return used;
}

/* Gets the memory of a worker; 0 if there is none. */
static int furnish(scratch *own, job *job) {
    own->memory = malloc(lay_out(NULL, job, own) + ALIGNMENT);
    if (!own->memory) {
        __atomic_store_n(&job->failed, 1, __ATOMIC_RELAXED);
        return 0;
    }
    lay_out(own->memory + (ALIGNMENT - (uintptr_t)own->memory % ALIGNMENT) % ALIGNMENT, job, own);
    return 1;
}

static void run_task(job *job, scratch *own, int64_t task) {
    const msda_call *call = job->call;
    const int wide = call->head_dim >= WIDE, kind = (int)call->kind;
    /* A task of the backward pass is one image, head and level; levels of a head follow one another. */
    if (job->backward) {
        const int64_t level = task % call->levels, head = task / call->levels % call->heads;
        BACKWARD[wide][kind](job, own, task / call->levels / call->heads, head, level, 0);
    } else { /* a task of the forward pass is a chunk of queries, with one head or with all of them */
        const int64_t heads_apart = job->dense ? call->heads : 1, head = task % heads_apart;
        const int64_t first = task / heads_apart * job->chunk, last = first + job->chunk;
        FORWARD[wide][kind](job, own, first, last < call->queries ? last : call->queries, head,
                            job->dense ? head + 1 : call->heads);
    }
}

/* One worker. It takes the next task when it has finished one, so that a slow core does not delay the others. */
static void work(int64_t begin, int64_t end, void *context) {
    job *job = context;
    scratch own = {0};
    (void)begin, (void)end; /* the pool decides the number of workers; each takes the tasks that are left */
    if (__atomic_load_n(&job->next, __ATOMIC_RELAXED) >= job->tasks) return;
    if (!furnish(&own, job)) return;
    for (int64_t task; (task = __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED)) < job->tasks;)
        run_task(job, &own, task);
    free(own.memory);
}

/* Copies the values of an image to head after head. In the values, pixels of a head lie a kilobyte apart: such a stride
 * uses only a few sets of the cache, and a page of memory for every four pixels. Where pixels are read many times, the
 * copy halves the time. */
static void make_dense(int64_t begin, int64_t end, void *context) {
    const job *job = context;
    const msda_call *call = job->call;
    const int64_t row = call->head_dim * (call->kind == KIND_REAL ? (int64_t)sizeof(real) : 2);
    const char *from = (const char *)call->value + job->image * call->positions * call->heads * row;
    for (int64_t p = begin; p < end; p++)
        for (int64_t h = 0; h < call->heads; h++)
            memcpy(job->dense + (h * call->positions + p) * row, from + (p * call->heads + h) * row, row);
}

/* Shifts and scales of a range of queries, once for all heads, where heads are separate tasks. */
static void make_aim(int64_t begin, int64_t end, void *context) {
    const job *job = context;
    WITH(WIDE, aim_queries)(job, begin, end, job->aim + begin * 4 * job->plan.padded);
}

/* Passes before and after the backward pass of a projection; each worker has a range of queries. */
static void around(int64_t begin, int64_t end, void *context, int after) {
    job *job = context;
    scratch own = {0};
    if (!furnish(&own, job)) return;
    (after ? WITH(WIDE, backward_projection) : WITH(WIDE, softmax_queries))(job, &own, begin, end);
    free(own.memory);
}
static void before(int64_t begin, int64_t end, void *context) { around(begin, end, context, 0); }
static void after(int64_t begin, int64_t end, void *context) { around(begin, end, context, 1); }

/* Runs `body` over 0..count on PyTorch's threads, at least `grain` at a time; inline where that is too little work. */
static void spread(job *job, int64_t count, int64_t grain, void (*body)(int64_t, int64_t, void *)) {
    const msda_call *call = job->call;
    if (!count) return;
    if (!call->parallel_for || call->threads < 2 || count <= grain)
        body(0, count, job);
    else if (call->parallel_for(0, count, grain, body, job))
        __atomic_store_n(&job->failed, 1, __ATOMIC_RELAXED);
}

static int64_t round_up(int64_t number, int64_t step) { return (number + step - 1) / step * step; }

/* Fills the plan of all samples of a query and head; returns its memory, or NULL if there is none. */
static char *make_plan(job *job) {
    const msda_call *call = job->call;
    plan *plan = &job->plan;
    /* Padded to 16, the lanes of the widest vectors, so that no pass needs a loop for the rest. */
    plan->samples = 0;
    for (int64_t l = 0; l < call->levels; l++) plan->samples += call->points[l];
    plan->padded = round_up(plan->samples ? plan->samples : 1, 16);
    /* All arrays lie in one block: ten of `padded` numbers, and two with an integer for each level. */
    const int64_t numbers = plan->padded * sizeof(real);
    char *memory = malloc(10 * numbers + 2 * call->levels * sizeof(int64_t));
    if (!memory) return NULL;
    char *at = memory;
    real **reals[] = {&plan->width, &plan->height};
    ireal **integers[] = {&plan->columns, &plan->rows, &plan->start, &plan->stride};
    plan->first_position = (int64_t *)at, at += call->levels * sizeof(int64_t);
    plan->first_sample = (int64_t *)at, at += call->levels * sizeof(int64_t);
    for (int i = 0; i < 2; i++, at += numbers) *reals[i] = (real *)at;
    for (int i = 0; i < 4; i++, at += numbers) *integers[i] = (ireal *)at;
    plan->aim = (real *)at;
    /* In the values a pixel has all heads, in the dense copy only one. */
    const int64_t size = call->kind == KIND_REAL ? sizeof(real) : 2;
    const int64_t stride = (job->dense ? 1 : call->heads) * call->head_dim * size;
    int64_t s = 0, position = 0;
    for (int64_t l = 0; l < call->levels; l++) {
        const int64_t height = call->shapes[2 * l], width = call->shapes[2 * l + 1];
        plan->first_position[l] = position;
        plan->first_sample[l] = s;
        for (int64_t end = s + call->points[l]; s < end; s++) {
            plan->rows[s] = plan->height[s] = height;
            plan->columns[s] = plan->width[s] = width;
            plan->start[s] = position;
            plan->stride[s] = stride;
        }
        position += height * width;
    }
    for (; s < plan->padded; s++) { /* samples that only fill up: no place is inside a map of width -1 */
        plan->width[s] = plan->height[s] = -1;
        plan->columns[s] = plan->rows[s] = plan->start[s] = plan->stride[s] = 0;
    }
    /* Given locations in 0..1 become pixels: times the size, minus half a pixel. */
    for (s = 0; s < plan->padded; s++) {
        plan->aim[s] = plan->aim[plan->padded + s] = (real)-0.5;
        plan->aim[2 * plan->padded + s] = plan->width[s];
        plan->aim[3 * plan->padded + s] = plan->height[s];
    }
    return memory;
}

/* Memory for maps, in large pages where the system has them: far fewer page faults. */
static char *reserve(int64_t bytes) {
#ifdef __linux__
    if (bytes >= 4 * LARGE_PAGE) {
        void *memory = NULL;
        if (posix_memalign(&memory, LARGE_PAGE, bytes)) return NULL;
        madvise(memory, bytes, MADV_HUGEPAGE); /* only advice: it is no error if the system ignores it */
        return memory;
    }
#endif
    return malloc(bytes ? bytes : 1);
}

/* Forward pass. Returns 0, or 1 if there was no memory. */
int ENTRY(forward)(const msda_call *call) {
    job job = {.call = call};
    /* Dense queries, as in an encoder, read every pixel many times: only then a copy of the values pays off. */
    const int64_t image = call->positions * call->heads * call->head_dim;
    const int dense = call->queries * 4 > call->positions && image >= 65536;
    if (dense) job.dense = reserve(image * (call->kind == KIND_REAL ? sizeof(real) : 2));
    char *memory = make_plan(&job);
    if (dense && call->projection) job.aim = (real *)reserve(call->queries * 4 * job.plan.padded * sizeof(real));
    job.failed = !memory || (dense && !job.dense) || (dense && call->projection && !job.aim);
    /* One more thread for every 262144 products or so: for less work it is not worth waking. */
    const int64_t work_of_query = call->heads * (job.plan.samples + 1) * (call->head_dim + 16);
    int64_t threads = call->queries * work_of_query / 262144 + 1;
    threads = threads < call->threads ? threads : call->threads;
    /* Several tasks for each thread, so that no thread waits long for the last one. If queries are few, a task has all
     * heads of some queries: the heads of a query read the same pages of memory. If queries are dense, a task has one
     * head of many queries: neighbours read the same pixels of a head, which stay in the cache. */
    const int64_t chunk = call->queries / (threads * 8) + 1;
    job.chunk = dense ? 1024 : chunk > 64 ? 64 : chunk < 4 ? 4 : chunk;
    job.tasks = (call->queries + job.chunk - 1) / job.chunk * (dense ? call->heads : 1);
    job.room = job.plan.padded;
    /* One image after another, so that only one needs a dense copy. */
    for (; job.image < call->batch && !job.failed; job.image++) {
        if (job.dense) spread(&job, call->positions, 512, make_dense);
        if (job.aim) spread(&job, call->queries, 512, make_aim);
        job.next = 0;
        spread(&job, threads, 1, work);
    }
    free(memory);
    free(job.dense);
    free(job.aim);
    return job.failed;
}

/* Backward pass. Returns 0, or 1 if there was no memory. */
int ENTRY(backward)(const msda_call *call) {
    job job = {.call = call, .backward = 1};
    char *memory = make_plan(&job);
    if (!memory) return 1;
    const int64_t queries = call->batch * call->queries;
    job.room = job.plan.padded > BLOCK ? job.plan.padded : BLOCK; /* a block of one level, or a whole query */
    job.tasks = call->batch * call->heads * call->levels;
    /* The softmax runs over all levels of a head, but a task sees one level only: its sums are made before. */
    if (call->projection) {
        job.softmax = malloc((queries * call->heads * 2 + 1) * sizeof(real));
        if (!job.softmax) job.failed = 1;
        else spread(&job, queries, 256, before);
    }
    if (!job.failed) spread(&job, call->threads < job.tasks ? call->threads : job.tasks, 1, work);
    /* The tasks leave gradients of places and weights; their way through aim and softmax needs all levels, too. */
    if (!job.failed && call->projection && call->grad_projection) spread(&job, queries, 256, after);
    free(job.softmax);
    free(memory);
    return job.failed;
}
