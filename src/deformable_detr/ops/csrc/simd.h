/* Arithmetic on one row, in vectors of LANES numbers.
 *
 * This file is included once per width, and every name carries the width: heads with few channels would waste most of
 * a wide register. The vectors are those of GNU C, which the compiler turns into instructions of the CPU. Intrinsics
 * stand only where it does not find the instruction. */

#define PASTE_(name, lanes) name##_##lanes
#define PASTE(name, lanes) PASTE_(name, lanes)
#define N(name) PASTE(name, LANES)
#define vec N(vec)
#define ivec N(ivec)

/* The loose types may lie at any address: rows of a tensor start anywhere. */
typedef real vec __attribute__((vector_size(LANES * sizeof(real))));
typedef ireal ivec __attribute__((vector_size(LANES * sizeof(real))));
typedef real N(loose) __attribute__((vector_size(LANES * sizeof(real)), aligned(sizeof(real)), may_alias));
typedef ireal N(iloose) __attribute__((vector_size(LANES * sizeof(real)), aligned(sizeof(real)), may_alias));
#ifndef MSDA_DOUBLE
typedef uint16_t N(shorts) __attribute__((vector_size(LANES * 2)));
typedef uint32_t N(bits) __attribute__((vector_size(LANES * 4)));
typedef uint16_t N(loose_shorts) __attribute__((vector_size(LANES * 2), aligned(2), may_alias));
#endif

#define AT(pointer) (*(const N(loose) *)(pointer))
#define PUT(pointer) (*(N(loose) *)(pointer))
#define IPUT(pointer) (*(N(iloose) *)(pointer))
#define IAT(pointer) (*(const N(iloose) *)(pointer))

#if LANES == 16
#define COUNT_UP 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
#elif LANES == 8
#define COUNT_UP 0, 1, 2, 3, 4, 5, 6, 7
#elif LANES == 4
#define COUNT_UP 0, 1, 2, 3
#else
#define COUNT_UP 0, 1
#endif
/* PICK: chosen entries of two vectors. ROTATE: entries moved around by some places. gcc and clang spell them apart. */
#if defined(__clang__)
#define PICK(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
static INLINE vec N(rotate)(vec x, int by) {
    vec y;
    for (int i = 0; i < LANES; i++) y[i] = x[(i + by) % LANES];
    return y;
}
#define ROTATE(x, by) N(rotate)(x, by)
#else
#define PICK(a, b, ...) __builtin_shuffle(a, b, (ivec){__VA_ARGS__})
#define ROTATE(x, by) __builtin_shuffle(x, ((ivec){COUNT_UP} + (by)) & (LANES - 1))
#endif

/* Writes four vectors in turns: the first entries of all four, then the second ones, and so on. */
static INLINE void N(weave)(const vec *x, real *to) {
#if defined(__clang__) || LANES == 2
    for (int i = 0; i < LANES; i++)
        for (int c = 0; c < 4; c++) to[4 * i + c] = x[c][i];
#else
    const ivec i = {COUNT_UP}, pairs = (i >> 1) + (i & 1) * LANES;
    const ivec fours = (i >> 2 << 1) + (i & 1) + (i >> 1 & 1) * LANES;
    for (int half = 0; half < 2; half++) {
        vec one = __builtin_shuffle(x[0], x[1], pairs + half * LANES / 2);
        vec two = __builtin_shuffle(x[2], x[3], pairs + half * LANES / 2);
        PUT(to + 2 * half * LANES) = __builtin_shuffle(one, two, fours);
        PUT(to + (2 * half + 1) * LANES) = __builtin_shuffle(one, two, fours + LANES / 2);
    }
#endif
}

static inline vec N(choose)(ivec mask, vec yes) { return (vec)((ivec)yes & mask); } /* zero where the mask is not set */
static inline vec N(spread)(real x) { return x - (vec){0}; }

#if LANES == 16
#define EVEN 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
#define ODD 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31
#elif LANES == 8
#define EVEN 0, 2, 4, 6, 8, 10, 12, 14
#define ODD 1, 3, 5, 7, 9, 11, 13, 15
#elif LANES == 4
#define EVEN 0, 2, 4, 6
#define ODD 1, 3, 5, 7
#else
#define EVEN 0, 2
#define ODD 1, 3
#endif
/* Conversions of the two 16-bit types. */
#ifndef MSDA_DOUBLE
static INLINE vec N(from_half)(N(shorts) h) {
#if LANES == 16 && defined(__AVX512F__)
    return (vec)_mm512_cvtph_ps((__m256i)h);
#elif LANES == 8 && defined(__F16C__)
    return (vec)_mm256_cvtph_ps((__m128i)h);
#elif LANES == 4 && defined(__aarch64__)
    return (vec)vcvt_f32_f16((float16x4_t)h);
#else
    /* Exponent and mantissa move to their places. A product then corrects the exponent: it is exact, also for
     * denormals. Infinity and NaN then get the highest exponent. */
    N(bits) wide = __builtin_convertvector(h, N(bits));
    vec magnitude = (vec)((wide & 0x7fff) << 13) * 0x1p112f;
    N(bits) endless = (N(bits))(magnitude >= 65536.0f) & 0x7f800000u;
    return (vec)((N(bits))magnitude | endless | ((wide & 0x8000) << 16));
#endif
}

static INLINE N(shorts) N(to_half)(vec x) {
#if LANES == 16 && defined(__AVX512F__)
    return (N(shorts))_mm512_cvtps_ph((__m512)x, 0);
#elif LANES == 8 && defined(__F16C__)
    return (N(shorts))_mm256_cvtps_ph((__m256)x, 0);
#elif LANES == 4 && defined(__aarch64__)
    return (N(shorts))vcvt_f16_f32((float32x4_t)x);
#else
    N(shorts) h;
    for (int i = 0; i < LANES; i++) h[i] = half_of(x[i]);
    return h;
#endif
}

static INLINE N(shorts) N(to_bfloat)(vec x) {
    N(bits) u = (N(bits))x;
    N(bits) nan = (N(bits))(x != x);
    N(bits) rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16; /* to nearest, ties to even */
    return __builtin_convertvector((rounded & ~nan) | (nan & 0x7fc0), N(shorts));
}
#endif

/* Loads `count` numbers from index `at` on, as real; with less than LANES the rest is zero. Only heads narrower than
 * the narrowest vector have less. */
static INLINE vec N(load)(const void *from, int64_t at, int kind, int64_t count) {
    (void)kind; /* double has only one kind */
#ifndef MSDA_DOUBLE
    if (kind != KIND_REAL) {
        const uint16_t *p = (const uint16_t *)from + at;
        N(shorts) h = {0};
        if (count == LANES)
            h = *(const N(loose_shorts) *)p;
        else
            for (int64_t i = 0; i < count; i++) h[i] = p[i];
        if (kind == KIND_BFLOAT) return (vec)(__builtin_convertvector(h, N(bits)) << 16);
        return N(from_half)(h);
    }
#endif
    const real *p = (const real *)from + at;
    if (count == LANES) return AT(p);
    vec x = {0};
    for (int64_t i = 0; i < count; i++) x[i] = p[i];
    return x;
}

/* Stores `count` numbers from index `at` on, rounded to the kind. */
static INLINE void N(store)(void *to, int64_t at, int kind, int64_t count, vec x) {
    (void)kind;
#ifndef MSDA_DOUBLE
    if (kind != KIND_REAL) {
        uint16_t *p = (uint16_t *)to + at;
        N(shorts) h = kind == KIND_BFLOAT ? N(to_bfloat)(x) : N(to_half)(x);
        if (count == LANES)
            *(N(loose_shorts) *)p = h;
        else
            for (int64_t i = 0; i < count; i++) p[i] = h[i];
        return;
    }
#endif
    real *p = (real *)to + at;
    if (count == LANES)
        PUT(p) = x;
    else
        for (int64_t i = 0; i < count; i++) p[i] = x[i];
}

/* Place of a sample: the pixel to its upper left, the distance beyond it, and which of the four pixels exist. */
typedef struct {
    ivec left, top, has_left, has_right, has_top, has_bottom;
    vec beyond_x, beyond_y;
} N(place);

static INLINE N(place) N(locate)(const plan *plan, int64_t s, const real *xy, const real *shift_x, const real *shift_y,
                                 const real *scale_x, const real *scale_y) {
    /* x and y lie in turns in memory: the even entries of two vectors are x, the odd ones y. */
    vec first = AT(xy + 2 * s), second = AT(xy + 2 * s + LANES);
    vec width = AT(plan->width + s), height = AT(plan->height + s);
    vec x = PICK(first, second, EVEN) * AT(scale_x + s) + AT(shift_x + s);
    vec y = PICK(first, second, ODD) * AT(scale_y + s) + AT(shift_y + s);
    /* Samples that touch no pixel move to (0, 0), where the arithmetic is safe; NaN fails the comparison, too. */
    ivec inside = (x > -1) & (x < width) & (y > -1) & (y < height);
    x = N(choose)(inside, x);
    y = N(choose)(inside, y);
    N(place) at;
    at.left = __builtin_convertvector(x, ivec);
    at.top = __builtin_convertvector(y, ivec);
    at.left += __builtin_convertvector(at.left, vec) > x; /* true is -1, which turns truncation into floor */
    at.top += __builtin_convertvector(at.top, vec) > y;
    at.beyond_x = x - __builtin_convertvector(at.left, vec);
    at.beyond_y = y - __builtin_convertvector(at.top, vec);
    at.has_left = inside & (at.left >= 0);
    at.has_top = inside & (at.top >= 0);
    at.has_right = inside & (at.left + 1 < IAT(plan->columns + s));
    at.has_bottom = inside & (at.top + 1 < IAT(plan->rows + s));
    return at;
}

/* Addresses and weights of the four pixels of `count` samples (padded to LANES). A pixel off the map has weight zero
 * and the address of a neighbour, so that gathering needs no branch. */
static INLINE void N(prepare)(const plan *plan, int64_t first, int64_t count, const real *xy, const real *weights,
                              real scale, const real *shift_x, const real *shift_y, const real *scale_x,
                              const real *scale_y, corners to) {
    for (int64_t s = first; s < first + count; s += LANES) {
        N(place) at = N(locate)(plan, s, xy, shift_x, shift_y, scale_x, scale_y);
        vec weight = AT(weights + s) * scale;
        vec left = N(choose)(at.has_left, 1 - at.beyond_x), right = N(choose)(at.has_right, at.beyond_x);
        vec top = N(choose)(at.has_top, (1 - at.beyond_y) * weight);
        vec bottom = N(choose)(at.has_bottom, at.beyond_y * weight);
        ivec columns = IAT(plan->columns + s), start = IAT(plan->start + s), stride = IAT(plan->stride + s);
        ivec x0 = at.left & ~(at.left >> (8 * sizeof(real) - 1)), y0 = at.top & ~(at.top >> (8 * sizeof(real) - 1));
        ivec x1 = at.left + 1 + (at.left + 1 >= columns), y1 = at.top + 1 + (at.top + 1 >= IAT(plan->rows + s));
        ivec upper = start + y0 * columns, lower = start + y1 * columns;
        const vec offsets[] = {(vec)((upper + x0) * stride), (vec)((upper + x1) * stride),
                               (vec)((lower + x0) * stride), (vec)((lower + x1) * stride)};
        const vec shares[] = {top * left, top * right, bottom * left, bottom * right};
        N(weave)(offsets, (real *)to.offset + 4 * s);
        N(weave)(shares, to.weight + 4 * s);
    }
}

/* Sum over samples of weight times pixel, for `groups` vectors of channels. Meanwhile it fetches the pixels of the next
 * row. Where these are `far`, they go to the second cache, which can wait for several times as many lines at once as
 * the first. */
static INLINE void N(gather)(const void *value, const void *next_value, int kind, int64_t channel, int64_t count,
                             const int groups, corners at, corners next, int64_t samples, int far, void *output) {
    const int64_t size = kind == KIND_REAL ? sizeof(real) : 2;
    const char *base = (const char *)value + channel * size, *ahead = (const char *)next_value + channel * size;
    vec one[4], two[4]; /* two sums, so that additions do not wait for each other */
    for (int g = 0; g < groups; g++) one[g] = two[g] = (vec){0};
    for (int64_t s = 0; s < samples; s++) {
        for (int c = 0; c < 4; c++)
            for (int line = 0; line < groups * LANES * size; line += 64)
                if (far)
                    __builtin_prefetch(ahead + next.offset[4 * s + c] + line, 0, 2);
                else
                    __builtin_prefetch(ahead + next.offset[4 * s + c] + line);
        for (int c = 0; c < 4; c++) {
            const char *row = base + at.offset[4 * s + c];
            const real weight = at.weight[4 * s + c];
            for (int g = 0; g < groups; g++) {
                vec pixel = N(load)(row, g * LANES, kind, count);
                if (c & 1)
                    two[g] += weight * pixel;
                else
                    one[g] += weight * pixel;
            }
        }
    }
    for (int g = 0; g < groups; g++) N(store)(output, channel + g * LANES, kind, count, one[g] + two[g]);
}

/* `gather` for all channels of a row, four vectors at a time, then two, then one. The last vector overlaps the one
 * before if the number of channels is no multiple of LANES. */
static INLINE void N(gather_row)(const void *value, const void *next_value, int kind, int64_t dim, corners at,
                                 corners next, int64_t samples, int far, void *output) {
    int64_t c = 0;
    for (; dim - c >= 4 * LANES; c += 4 * LANES)
        N(gather)(value, next_value, kind, c, LANES, 4, at, next, samples, far, output);
    for (; dim - c >= 2 * LANES; c += 2 * LANES)
        N(gather)(value, next_value, kind, c, LANES, 2, at, next, samples, far, output);
    for (; dim - c >= LANES; c += LANES) N(gather)(value, next_value, kind, c, LANES, 1, at, next, samples, far, output);
    if (c < dim && dim >= LANES)
        N(gather)(value, next_value, kind, dim - LANES, LANES, 1, at, next, samples, far, output);
    else if (c < dim)
        N(gather)(value, next_value, kind, 0, dim, 1, at, next, samples, far, output);
}

/* exp(x) for x <= 0, relative error below 2e-7; NaN stays NaN. */
static INLINE vec N(exponential)(vec x) {
#ifdef MSDA_DOUBLE
    for (int i = 0; i < LANES; i++) x[i] = exp(x[i]);
    return x;
#else
    ivec tiny = x < -87.0f;
    x = (vec)(((ivec)x & ~tiny) | ((ivec)N(spread)(-87.0f) & tiny));
    /* exp(x) = 2^whole * exp(r), with r in -ln 2 / 2 .. ln 2 / 2. The large number rounds to a whole one, which then
     * stands in the low bits of `shifted`. A polynomial of degree 6 gives exp(r), and `whole` goes to the exponent. */
    vec shifted = x * 1.44269504f + 0x1.8p23f;
    vec whole = shifted - 0x1.8p23f;
    vec r = (x - whole * 0.693359375f) + whole * 2.12194440e-4f; /* ln 2 in two parts: the first product is exact */
    vec p = 1.0f + r * (1.0f + r * (0.5f + r * (0.166666657f + r * (4.16664466e-2f +
            r * (8.33345205e-3f + r * 1.39357591e-3f)))));
    return (vec)((ivec)p + ((ivec)shifted << 23));
#endif
}

static INLINE real N(sum)(vec x) {
    for (int width = LANES / 2; width; width /= 2) x += ROTATE(x, width);
    return x[0];
}

static INLINE real N(maximum)(vec x) {
    for (int width = LANES / 2; width; width /= 2) {
        vec other = ROTATE(x, width);
        x = (vec)(((ivec)x & (x > other)) | ((ivec)other & ~(x > other)));
    }
    return x[0];
}

/* Softmax without its division: fills `weights` with exponentials, zeros up to `padded`; returns 1 / sum. The highest
 * logit is taken off first, so that no exponential overflows. */
static INLINE real N(soften)(const real *logits, int64_t samples, int64_t padded, real *weights, real *highest) {
    for (int64_t s = samples; s < padded; s++) weights[s] = -1e30f;
    if (weights != logits) memcpy(weights, logits, samples * sizeof(real));
    vec most = AT(weights);
    for (int64_t s = LANES; s < padded; s += LANES) {
        ivec more = AT(weights + s) > most;
        most = (vec)(((ivec)AT(weights + s) & more) | ((ivec)most & ~more));
    }
    *highest = N(maximum)(most);
    vec total = {0};
    for (int64_t s = 0; s < padded; s += LANES) {
        vec e = N(exponential)(AT(weights + s) - *highest);
        PUT(weights + s) = e;
        total += e;
    }
    return 1 / N(sum)(total);
}

/* Adds the sums over the lanes of four vectors to four numbers, which lie `step` apart. */
static INLINE void N(sums)(const vec *x, real *to, int64_t step) {
#if LANES == 16 && defined(__AVX512F__)
    __m256 y[4];
    for (int i = 0; i < 4; i++)
        y[i] = _mm256_add_ps(_mm512_castps512_ps256((__m512)x[i]),
                             _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd((__m512)x[i]), 1)));
    __m256 z = _mm256_hadd_ps(_mm256_hadd_ps(y[0], y[1]), _mm256_hadd_ps(y[2], y[3]));
#elif LANES == 8 && defined(__AVX2__) && !defined(MSDA_DOUBLE)
    __m256 z = _mm256_hadd_ps(_mm256_hadd_ps((__m256)x[0], (__m256)x[1]), _mm256_hadd_ps((__m256)x[2], (__m256)x[3]));
#endif
#if !defined(MSDA_DOUBLE) && ((LANES == 16 && defined(__AVX512F__)) || (LANES == 8 && defined(__AVX2__)))
    float four[4] __attribute__((aligned(16)));
    _mm_store_ps(four, _mm_add_ps(_mm256_castps256_ps128(z), _mm256_extractf128_ps(z, 1)));
    for (int i = 0; i < 4; i++) to[i * step] += four[i];
#else
    for (int i = 0; i < 4; i++) to[i * step] += N(sum)(x[i]);
#endif
}

/* Backward pass of the samples of one query, for `groups` vectors of channels. It adds weight times gradient to the
 * gradient of each pixel, and the product of gradient and pixel to `dots` (4, step), from which the gradients of places
 * and weights follow. */
static INLINE void N(scatter)(const void *value, int kind, real *grad_value, const real *grad, int64_t channel,
                              int64_t skip, int64_t count, const int groups, corners at, int64_t first,
                              int64_t samples, int64_t last, real *dots, int64_t step) {
    const int64_t size = kind == KIND_REAL ? sizeof(real) : 2;
    const int64_t times = sizeof(real) / size; /* the gradient has the layout of the values, in full precision */
    const char *base = (const char *)value + channel * size;
    char *into = (char *)(grad_value + channel);
    vec g[4];
    for (int i = 0; i < groups; i++) g[i] = N(load)(grad, channel + i * LANES, KIND_REAL, count);
    for (int64_t i = 0; i < skip; i++) g[0][i] = 0; /* the vector before has done these channels */
    for (int64_t s = first; s < first + samples; s++) {
        /* Eight samples ahead, pixels and their gradients are fetched, also across the end of a query. */
        int64_t ahead = s + 8 < last ? s + 8 : s;
        vec dot[4];
        for (int c = 0; c < 4; c++) {
            const char *row = base + at.offset[4 * s + c];
            for (int line = 0; line < groups * LANES * size; line += 64)
                __builtin_prefetch(base + at.offset[4 * ahead + c] + line);
            dot[c] = (vec){0};
            if (dots)
                for (int i = 0; i < groups; i++) dot[c] += g[i] * N(load)(row, i * LANES, kind, count);
            if (grad_value) {
                real *to = (real *)(into + at.offset[4 * s + c] * times);
                for (int line = 0; line < groups * LANES * (int)sizeof(real); line += 64)
                    __builtin_prefetch(into + at.offset[4 * ahead + c] * times + line, 1);
                for (int i = 0; i < groups; i++)
                    N(store)(to, i * LANES, KIND_REAL, count,
                             N(load)(to, i * LANES, KIND_REAL, count) + at.weight[4 * s + c] * g[i]);
            }
        }
        if (dots) N(sums)(dot, dots + s, step);
    }
}

/* `scatter` for all channels of a row. The last vector overlaps the one before, where `skip` channels count as zero. */
static INLINE void N(scatter_row)(const void *value, int kind, real *grad_value, const real *grad, int64_t dim,
                                  corners at, int64_t first, int64_t samples, int64_t last, real *dots,
                                  int64_t step) {
    int64_t c = 0;
    for (; dim - c >= 4 * LANES; c += 4 * LANES)
        N(scatter)(value, kind, grad_value, grad, c, 0, LANES, 4, at, first, samples, last, dots, step);
    for (; dim - c >= 2 * LANES; c += 2 * LANES)
        N(scatter)(value, kind, grad_value, grad, c, 0, LANES, 2, at, first, samples, last, dots, step);
    for (; dim - c >= LANES; c += LANES)
        N(scatter)(value, kind, grad_value, grad, c, 0, LANES, 1, at, first, samples, last, dots, step);
    if (c < dim && dim >= LANES)
        N(scatter)(value, kind, grad_value, grad, dim - LANES, c - (dim - LANES), LANES, 1, at, first, samples, last,
                   dots, step);
    else if (c < dim)
        N(scatter)(value, kind, grad_value, grad, 0, 0, dim, 1, at, first, samples, last, dots, step);
}

/* Gradients of the places of `count` samples, in pixels, and of their weights, from the four products of each. A pixel
 * off the map counts as zero. The gradient of a weight interpolates the products, that of a place is the slope. */
static INLINE void N(finish)(const plan *plan, int64_t count, const real *xy, const real *weights,
                             const real *shift_x, const real *shift_y, const real *scale_x, const real *scale_y,
                             const real *dots, int64_t step, real *along_x, real *along_y, real *of_weight) {
    for (int64_t s = 0; s < count; s += LANES) {
        N(place) at = N(locate)(plan, s, xy, shift_x, shift_y, scale_x, scale_y);
        vec d0 = N(choose)(at.has_left & at.has_top, AT(dots + s));
        vec d1 = N(choose)(at.has_right & at.has_top, AT(dots + step + s));
        vec d2 = N(choose)(at.has_left & at.has_bottom, AT(dots + 2 * step + s));
        vec d3 = N(choose)(at.has_right & at.has_bottom, AT(dots + 3 * step + s));
        vec weight = AT(weights + s), fx = at.beyond_x, fy = at.beyond_y;
        ivec inside = at.has_left | at.has_right;
        PUT(along_x + s) = N(choose)(inside, weight * ((1 - fy) * (d1 - d0) + fy * (d3 - d2)));
        PUT(along_y + s) = N(choose)(inside, weight * ((1 - fx) * (d2 - d0) + fx * (d3 - d1)));
        PUT(of_weight + s) = (1 - fy) * ((1 - fx) * d0 + fx * d1) + fy * ((1 - fx) * d2 + fx * d3);
    }
}
