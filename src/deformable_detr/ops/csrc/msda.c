/* Multi-scale deformable attention on the CPU: plain C, no library. Compiled once per instruction set, and for float
 * and double: -DMSDA_NAME=... names the two entry points, -DMSDA_DOUBLE makes the second kind. */
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
    BLOCK = 64,    /* samples that the way back prepares at once */
    ALIGNMENT = 64, /* bytes of a cache line */
    LARGE_PAGE = 2 << 20
};

/* What is the same for every query: one entry per sample, padded to whole vectors. */
typedef struct {
    int64_t samples, padded;
    real *width, *height;
    ireal *columns, *rows, *start, *stride; /* `stride`: bytes from one pixel to the next */
    real *aim; /* shift x, shift y, scale x, scale y of given locations */
    int64_t *first_position, *first_sample; /* of each level */
} plan;

/* Of the four pixels around each sample: byte offsets, and weights. */
typedef struct {
    ireal *offset;
    real *weight;
} corners;

typedef struct {
    const msda_call *call;
    plan plan;
    int64_t chunk; /* queries of a task */
    int64_t tasks, next; /* `next`: the first task nobody has taken; only touched atomically */
    int failed; /* out of memory */
    int backward;
    int64_t image; /* of the pass that is running */
    char *dense;   /* its values, head after head, where queries are as dense as pixels; else NULL */
    real *aim;     /* then, too: where the samples of a projection fall, (queries, 4, padded) */
    int64_t room; /* samples a worker prepares at once */
    real *softmax; /* (batch, queries, heads, 2): highest logit, 1 / sum of exponentials */
} job;

/* What one worker alone reads and writes. */
typedef struct {
    char *memory;
    corners corners[2];
    real *aim, *xy, *weights, *share, *dots, *found, *row_grad, *grad_value;
    char *value;
    plan level;
} scratch;

static float as_float(uint32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

/* float to half, to nearest, ties to even; for machines without an instruction for it. */
static inline uint16_t half_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) return sign | 0x7e00;
    if (magnitude >= 0x47800000) return sign | 0x7c00; /* 65536 and more */
    if (magnitude < 0x38800000) { /* below the smallest normal half: let the adder round */
        float sum = as_float(magnitude) + 0.5f;
        memcpy(&bits, &sum, 4);
        return sign | (bits - 0x3f000000);
    }
    return sign | ((magnitude + 0xfff + (magnitude >> 13 & 1) - 0x38000000) >> 13);
}

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

/* One compiled copy for each width and storage: what is constant in a copy costs nothing. */
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

/* Hands out aligned pieces of one block; with a null block it only counts. */
static void *take(char *block, int64_t *used, int64_t bytes) {
    void *piece = block ? block + *used : NULL;
    *used += (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    return piece;
}

static int64_t lay_out(char *block, const job *job, scratch *own) {
    const msda_call *call = job->call;
    int64_t used = 0, room = job->room, numbers = room * sizeof(real);
    for (int i = 0; i < 2; i++) {
        own->corners[i].offset = take(block, &used, 4 * numbers);
        own->corners[i].weight = take(block, &used, 4 * numbers);
    }
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
    int64_t largest = 0;
    for (int64_t l = 0; l < call->levels; l++) {
        int64_t size = call->shapes[2 * l] * call->shapes[2 * l + 1];
        largest = size > largest ? size : largest;
    }
    own->value = take(block, &used, largest * call->head_dim * sizeof(real));
    own->grad_value = take(block, &used, largest * call->head_dim * sizeof(real));
    return used;
}

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
    if (job->backward) {
        const int64_t level = task % call->levels, head = task / call->levels % call->heads;
        BACKWARD[wide][kind](job, own, task / call->levels / call->heads, head, level, 0);
    } else {
        const int64_t heads_apart = job->dense ? call->heads : 1, head = task % heads_apart;
        const int64_t first = task / heads_apart * job->chunk, last = first + job->chunk;
        FORWARD[wide][kind](job, own, first, last < call->queries ? last : call->queries, head,
                            job->dense ? head + 1 : call->heads);
    }
}

/* Workers take the next task when they are done with one, so that a core that is slow or busy holds nobody up. */
static void work(int64_t begin, int64_t end, void *context) {
    job *job = context;
    scratch own = {0};
    (void)begin, (void)end; /* how many workers there are is up to the pool; each takes what is left */
    if (__atomic_load_n(&job->next, __ATOMIC_RELAXED) >= job->tasks) return;
    if (!furnish(&own, job)) return;
    for (int64_t task; (task = __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED)) < job->tasks;)
        run_task(job, &own, task);
    free(own.memory);
}

/* Pixels of a head lie a kilobyte apart in the values: the few sets of the cache that such a stride reaches, and a page
 * of memory for every four pixels. Where all are looked at many times, a copy in another order halves the time. */
static void make_dense(int64_t begin, int64_t end, void *context) {
    const job *job = context;
    const msda_call *call = job->call;
    const int64_t row = call->head_dim * (call->kind == KIND_REAL ? (int64_t)sizeof(real) : 2);
    const char *from = (const char *)call->value + job->image * call->positions * call->heads * row;
    for (int64_t p = begin; p < end; p++)
        for (int64_t h = 0; h < call->heads; h++)
            memcpy(job->dense + (h * call->positions + p) * row, from + (p * call->heads + h) * row, row);
}

static void make_aim(int64_t begin, int64_t end, void *context) {
    const job *job = context;
    WITH(WIDE, aim_queries)(job, begin, end, job->aim + begin * 4 * job->plan.padded);
}

/* The passes around the way back of a projection: each worker a range of queries. */
static void around(int64_t begin, int64_t end, void *context, int after) {
    job *job = context;
    scratch own = {0};
    if (!furnish(&own, job)) return;
    (after ? WITH(WIDE, backward_projection) : WITH(WIDE, softmax_queries))(job, &own, begin, end);
    free(own.memory);
}
static void before(int64_t begin, int64_t end, void *context) { around(begin, end, context, 0); }
static void after(int64_t begin, int64_t end, void *context) { around(begin, end, context, 1); }

static void spread(job *job, int64_t count, int64_t grain, void (*body)(int64_t, int64_t, void *)) {
    const msda_call *call = job->call;
    if (!count) return;
    if (!call->parallel_for || call->threads < 2 || count <= grain)
        body(0, count, job);
    else if (call->parallel_for(0, count, grain, body, job))
        __atomic_store_n(&job->failed, 1, __ATOMIC_RELAXED);
}

static int64_t round_up(int64_t number, int64_t step) { return (number + step - 1) / step * step; }

static char *make_plan(job *job) {
    const msda_call *call = job->call;
    plan *plan = &job->plan;
    plan->samples = 0;
    for (int64_t l = 0; l < call->levels; l++) plan->samples += call->points[l];
    plan->padded = round_up(plan->samples ? plan->samples : 1, 16);
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
    for (; s < plan->padded; s++) { /* nothing is inside a map of width -1 */
        plan->width[s] = plan->height[s] = -1;
        plan->columns[s] = plan->rows[s] = plan->start[s] = plan->stride[s] = 0;
    }
    for (s = 0; s < plan->padded; s++) {
        plan->aim[s] = plan->aim[plan->padded + s] = (real)-0.5;
        plan->aim[2 * plan->padded + s] = plan->width[s];
        plan->aim[3 * plan->padded + s] = plan->height[s];
    }
    return memory;
}

/* Memory for a map; in large pages where the system has them, which take a fraction of the time to come by. */
static char *reserve(int64_t bytes) {
#ifdef __linux__
    if (bytes >= 4 * LARGE_PAGE) {
        void *memory = NULL;
        if (posix_memalign(&memory, LARGE_PAGE, bytes)) return NULL;
        madvise(memory, bytes, MADV_HUGEPAGE); /* advice: that it is not taken is no error */
        return memory;
    }
#endif
    return malloc(bytes ? bytes : 1);
}

/* Both return 0, or 1 if there was no memory. Work too small to be worth waking other threads runs inline. */
int ENTRY(forward)(const msda_call *call) {
    job job = {.call = call};
    const int64_t image = call->positions * call->heads * call->head_dim;
    const int dense = call->queries * 4 > call->positions && image >= 65536;
    if (dense) job.dense = reserve(image * (call->kind == KIND_REAL ? sizeof(real) : 2));
    char *memory = make_plan(&job);
    if (dense && call->projection) job.aim = (real *)reserve(call->queries * 4 * job.plan.padded * sizeof(real));
    job.failed = !memory || (dense && !job.dense) || (dense && call->projection && !job.aim);
    const int64_t work_of_query = call->heads * (job.plan.samples + 1) * (call->head_dim + 16);
    int64_t threads = call->queries * work_of_query / 262144 + 1;
    threads = threads < call->threads ? threads : call->threads;
    /* Enough tasks that the slowest is not waited for. Where queries are few, a task has all heads of some: the heads
     * of a query look at the same pages of memory. Where they are dense, one head of many: neighbours look at the same
     * pixels of a head, which stay in the cache. */
    const int64_t chunk = call->queries / (threads * 8) + 1;
    job.chunk = dense ? 1024 : chunk > 64 ? 64 : chunk < 4 ? 4 : chunk;
    job.tasks = (call->queries + job.chunk - 1) / job.chunk * (dense ? call->heads : 1);
    job.room = job.plan.padded;
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

int ENTRY(backward)(const msda_call *call) {
    job job = {.call = call, .backward = 1};
    char *memory = make_plan(&job);
    if (!memory) return 1;
    const int64_t queries = call->batch * call->queries;
    job.room = job.plan.padded > BLOCK ? job.plan.padded : BLOCK; /* of a block of one level, or of a whole query */
    job.tasks = call->batch * call->heads * call->levels;
    if (call->projection) {
        job.softmax = malloc((queries * call->heads * 2 + 1) * sizeof(real));
        if (!job.softmax) job.failed = 1;
        else spread(&job, queries, 256, before);
    }
    if (!job.failed) spread(&job, call->threads < job.tasks ? call->threads : job.tasks, 1, work);
    if (!job.failed && call->projection && call->grad_projection) spread(&job, queries, 256, after);
    free(job.softmax);
    free(memory);
    return job.failed;
}
