/* Passes over queries, heads and levels, in vectors of LANES; no two tasks write to the same place. This file is
 * included after simd.h, once per width. */

/* Shift and scale of the samples of one query and level: place = offset * scale + shift, in pixels of the level. Around
 * a reference point an offset counts pixels, around a reference box half-boxes / points (section 4.1). */
static INLINE void N(aim)(const msda_call *call, int64_t row, int64_t level, int64_t from, int64_t count,
                          real *shift_x, real *shift_y, real *scale_x, real *scale_y) {
    const real *at = (const real *)call->reference + (row * call->levels + level) * call->reference_size;
    real height = call->shapes[2 * level], width = call->shapes[2 * level + 1], half = (real)0.5 / call->points[level];
    real x = at[0] * width - (real)0.5, y = at[1] * height - (real)0.5;
    real per_x = call->reference_size == 4 ? at[2] * width * half : 1;
    real per_y = call->reference_size == 4 ? at[3] * height * half : 1;
    for (int64_t s = from; s < from + count; s++) {
        shift_x[s] = x;
        shift_y[s] = y;
        scale_x[s] = per_x;
        scale_y[s] = per_y;
    }
}

/* Shift and scale of all samples of the queries `first` to `last` of this pass's image, query after query. */
static INLINE void N(aim_queries)(const job *job, int64_t first, int64_t last, real *aim) {
    const msda_call *call = job->call;
    const int64_t padded = job->plan.padded;
    for (int64_t q = first; q < last; q++, aim += 4 * padded)
        for (int64_t l = 0, s = 0; l < call->levels; s += call->points[l++])
            N(aim)(call, job->image * call->queries + q, l, s, call->points[l], aim, aim + padded, aim + 2 * padded,
                   aim + 3 * padded);
}

/* Forward pass of some queries and heads of this pass's image: fills their output rows. */
static INLINE void N(forward_rows)(const job *job, scratch *own, int64_t first, int64_t last, int64_t first_head,
                                   int64_t last_head, int kind) {
    const msda_call *call = job->call;
    const plan *plan = &job->plan;
    const int64_t samples = plan->samples, padded = plan->padded, heads = call->heads, dim = call->head_dim;
    const int64_t size = kind == KIND_REAL ? sizeof(real) : 2, some = last_head - first_head;
    const real *locations = call->locations, *weights = call->weights, *projection = call->projection;
    const int64_t head_step = (job->dense ? call->positions : 1) * dim * size;
    const char *value = (const char *)call->value + job->image * call->positions * heads * dim * size;
    /* Given locations share one aim. In a projection each query has its own, made for the whole image before or here. */
    const real *aims = plan->aim;
    if (job->dense) value = job->dense;
    if (projection && job->dense) {
        aims = job->aim + first * 4 * padded;
    } else if (projection) {
        N(aim_queries)(job, first, last, own->aim);
        aims = own->aim;
    }
    /* The loop is one row behind itself: it prepares row i, and then sums up row i - 1 while the pixels of row i are
     * fetched from memory. Hence one round more than there are rows, and two sets of corners in turns. */
    corners now = own->corners[0], next = own->corners[1];
    int64_t head_before = 0;
    char *output = NULL;
    for (int64_t i = 0, rows = (last - first) * some; i <= rows; i++) {
        const corners spare = now;
        const int64_t head = i == rows ? head_before : first_head + i % some;
        const int64_t row = job->image * call->queries + first + i / some;
        if (i < rows) {
            /* Coordinates and weights of the row: offsets and the softmax of its logits, or as they are given. The
             * softmax is not divided by its sum here: `scale` does that later, together with the interpolation. */
            const real *xy, *weight, *aim = aims + (projection ? i / some * 4 * padded : 0);
            real scale = 1, highest;
            if (projection) {
                const real *all = projection + row * heads * samples * 3;
                xy = all + head * samples * 2;
                scale = N(soften)(all + (2 * heads + head) * samples, samples, padded, own->weights, &highest);
                weight = own->weights;
            } else {
                xy = locations + (row * heads + head) * samples * 2;
                weight = weights + (row * heads + head) * samples;
            }
            /* With one head, rows lie far apart, and the CPU does not predict their addresses. So the inputs of the
             * query eight further on and the output row of the query four further on are fetched by hand. */
            if (some == 1) {
                const int64_t step = projection ? 8 * heads * samples * 3 : 8 * heads * samples;
                const real *places = projection ? xy + step : xy + 2 * step;
                const int64_t logits = row * heads * samples * 3 + (2 * heads + head) * samples;
                const real *shares = (projection ? projection + logits : weight) + step;
                const char *to = (char *)call->output + ((row + 4) * heads + head) * dim * size;
                for (int64_t c = 0; c < dim * size; c += 64) __builtin_prefetch(to + c, 1);
                for (int64_t s = 0; s < 2 * samples; s += 64 / sizeof(real)) __builtin_prefetch(places + s);
                for (int64_t s = 0; s < samples; s += 64 / sizeof(real)) __builtin_prefetch(shares + s);
            }
            /* The last vector reads beyond its row. That is the next row, which does no harm, but at the end of the
             * array it would be foreign memory: there the row is copied to a place with room behind it. */
            const int64_t rows_left = call->batch * call->queries * heads - (row * heads + head);
            if (!projection && rows_left * samples < padded) {
                xy = memcpy(own->xy, xy, 2 * samples * sizeof(real));
                weight = memcpy(own->weights, weight, samples * sizeof(real));
            } else if (projection && rows_left * samples * 3 < 2 * padded) {
                xy = memcpy(own->xy, xy, 2 * samples * sizeof(real));
            }
            N(prepare)(plan, 0, padded, xy, weight, scale, aim, aim + padded, aim + 2 * padded, aim + 3 * padded, next);
        } else {
            next = now; /* no row is left to fetch ahead */
        }
        /* The row before, whose pixels have arrived by now. */
        if (i > 0)
            N(gather_row)(value + head_before * head_step, value + head * head_step, kind, dim, now, next, samples,
                          !job->dense, output);
        head_before = head;
        output = (char *)call->output + (row * heads + head) * dim * size;
        now = next;
        next = spare;
    }
}

/* Backward pass of one image, head and level: the gradient of its map, and those of all samples in it. No other task
 * writes to these. So no addition is atomic, and their order is the same for any number of threads. */
static INLINE void N(backward_level)(const job *job, scratch *own, int64_t image, int64_t head, int64_t level,
                                     int kind) {
    const msda_call *call = job->call;
    const int64_t heads = call->heads, dim = call->head_dim, samples = job->plan.samples, stride = heads * dim;
    const int64_t points = call->points[level], before = job->plan.first_sample[level];
    const int64_t height = call->shapes[2 * level], width = call->shapes[2 * level + 1], size_of_map = height * width;
    const int64_t size = kind == KIND_REAL ? sizeof(real) : 2;
    const int64_t origin = ((image * call->positions + job->plan.first_position[level]) * heads + head) * dim;
    const int wants_places = call->grad_locations || call->grad_weights || call->grad_projection;
    const char *value = (const char *)call->value + origin * size;
    real *grad_value = call->grad_value && kind == KIND_REAL ? (real *)call->grad_value + origin : NULL;
    /* A dense copy of the map, with a gradient in full precision: always for 16-bit values, whose sums would lose too
     * much, and where pixels are read often enough to pay for it. Else the gradient is added to in its final place. */
    const int packs = kind != KIND_REAL || call->queries * points * 2 > size_of_map;
    if (packs) {
        char *dense = own->value;
        for (int64_t p = 0; p < size_of_map; p++) memcpy(dense + p * dim * size, value + p * stride * size, dim * size);
        value = dense;
        if (call->grad_value) memset(grad_value = own->grad_value, 0, size_of_map * dim * sizeof(real));
    } else if (grad_value) {
        for (int64_t p = 0; p < size_of_map; p++) memset(grad_value + p * stride, 0, dim * sizeof(real));
    }
    /* Queries in blocks of at most BLOCK samples: enough for whole vectors, and little enough for the first cache. */
    const int64_t block = points > BLOCK ? 1 : BLOCK / (points ? points : 1);
    plan here = level_plan(job, own, level, (packs ? dim : stride) * size);
    const int64_t room = here.padded;
    real *aim = own->aim, *xy = own->xy, *weight = own->weights, *dots = own->dots, *row_grad = own->row_grad;
    for (int64_t first = 0; first < call->queries && points; first += block) {
        const int64_t last = first + block < call->queries ? first + block : call->queries;
        const int64_t count = (last - first) * points, padded = (count + LANES - 1) / LANES * LANES;
        /* Collect coordinates and weights of the block's samples, which lie far apart in the inputs. */
        for (int64_t q = first; q < last; q++) {
            const int64_t row = image * call->queries + q, s = (q - first) * points;
            if (call->projection) {
                const real *all = (const real *)call->projection + row * heads * samples * 3;
                memcpy(xy + 2 * s, all + (head * samples + before) * 2, 2 * points * sizeof(real));
                const real *logits = all + (2 * heads + head) * samples + before;
                real highest = job->softmax[(row * heads + head) * 2];
                for (int64_t p = 0; p < points; p++) weight[s + p] = logits[p] - highest;
                for (int64_t p = 0; p < points; p++) own->share[s + p] = job->softmax[(row * heads + head) * 2 + 1];
                N(aim)(call, row, level, s, points, aim, aim + room, aim + 2 * room, aim + 3 * room);
            } else {
                const int64_t from = (row * heads + head) * samples + before;
                memcpy(xy + 2 * s, (const real *)call->locations + 2 * from, 2 * points * sizeof(real));
                memcpy(weight + s, (const real *)call->weights + from, points * sizeof(real));
            }
        }
        for (int64_t s = count; s < padded; s++) { /* samples that only fill up the last vector: NaN is nowhere */
            xy[2 * s] = xy[2 * s + 1] = NAN;
            weight[s] = own->share[s] = 0;
        }
        /* The softmax, from its highest logit and its sum over all levels, which an earlier pass has left. */
        if (call->projection)
            for (int64_t s = 0; s < padded; s += LANES)
                PUT(weight + s) = N(exponential)(AT(weight + s)) * AT(own->share + s);
        /* Pixels and weights of all samples, as in the forward pass. */
        const real *by = call->projection ? aim : here.aim;
        N(prepare)(&here, 0, padded, xy, weight, 1, by, by + room, by + 2 * room, by + 3 * room, own->corners[0]);
        if (wants_places) memset(dots, 0, 4 * room * sizeof(real));
        /* Query by query: add its gradient to that of the pixels, and multiply it with the pixels for the others. */
        for (int64_t q = first; q < last; q++) {
            const int64_t at = ((image * call->queries + q) * heads + head) * dim;
            const real *grad = (const real *)call->grad + at;
            if (kind != KIND_REAL) { /* converted once for all samples of the row */
                for (int64_t c = 0; c < dim; c += LANES) {
                    int64_t some = dim - c < LANES ? dim - c : LANES;
                    N(store)(row_grad, c, KIND_REAL, some, N(load)(call->grad, at + c, kind, some));
                }
                grad = row_grad;
            }
            N(scatter_row)(value, kind, grad_value, grad, dim, own->corners[0], (q - first) * points, points, count,
                           wants_places ? dots : NULL, room);
        }
        if (!wants_places) continue;
        /* Gradients of places and weights from these products, all samples of the block in vectors. */
        real *along_x = own->found, *along_y = along_x + room, *of_weight = along_y + room;
        N(finish)(&here, padded, xy, weight, by, by + room, by + 2 * room, by + 3 * room, dots, room, along_x, along_y,
                  of_weight);
        /* Back to the places in memory that the samples came from, in the unit of the inputs. */
        for (int64_t q = first; q < last; q++) {
            const int64_t row = image * call->queries + q, s = (q - first) * points;
            const int64_t to = (row * heads + head) * samples + before;
            real *places = (real *)call->grad_locations + 2 * to, *weights = (real *)call->grad_weights + to;
            real to_x = width, to_y = height;
            if (call->projection) { /* stays in pixels; `backward_projection` goes on from there */
                places = (real *)call->grad_projection + row * heads * samples * 3 + (head * samples + before) * 2;
                weights = (real *)call->grad_projection + (row * 3 + 2) * heads * samples + head * samples + before;
                to_x = to_y = 1;
            }
            for (int64_t p = 0; p < points && (call->projection || call->grad_locations); p++) {
                places[2 * p] = along_x[s + p] * to_x;
                places[2 * p + 1] = along_y[s + p] * to_y;
            }
            for (int64_t p = 0; p < points && (call->projection || call->grad_weights); p++)
                weights[p] = of_weight[s + p];
        }
    }
    /* The gradient of the dense map, rounded only now, to its place among the other heads. */
    if (packs && call->grad_value)
        for (int64_t p = 0; p < size_of_map; p++)
            for (int64_t c = 0; c < dim; c += LANES) {
                int64_t some = dim - c < LANES ? dim - c : LANES;
                N(store)(call->grad_value, origin + p * stride + c, kind, some,
                         N(load)(grad_value, p * dim + c, KIND_REAL, some));
            }
}

/* Softmax of some queries, as far as levels share it: the highest logit of each row, and 1 / sum of exponentials. */
static INLINE void N(softmax_queries)(const job *job, scratch *own, int64_t first, int64_t last) {
    const int64_t heads = job->call->heads, samples = job->plan.samples;
    for (int64_t row = first * heads; row < last * heads; row++) {
        const real *logits = (const real *)job->call->projection + (row / heads * 3 + 2) * heads * samples +
                             row % heads * samples;
        job->softmax[2 * row + 1] = N(soften)(logits, samples, job->plan.padded, own->weights, &job->softmax[2 * row]);
    }
}

/* Last pass of a projection: gradients of places in pixels and of weights become those of offsets, logits and
 * references, in place. */
static INLINE void N(backward_projection)(const job *job, scratch *own, int64_t first, int64_t last) {
    const msda_call *call = job->call;
    const int64_t heads = call->heads, samples = job->plan.samples, padded = job->plan.padded;
    const int64_t width = call->reference_size;
    for (int64_t row = first; row < last; row++) {
        const real *offsets = (const real *)call->projection + row * heads * samples * 3;
        real *grad = (real *)call->grad_projection + row * heads * samples * 3, highest;
        real *grad_reference = call->grad_reference ? (real *)call->grad_reference + row * call->levels * width : NULL;
        real *shift_x = own->aim, *shift_y = shift_x + padded, *scale_x = shift_y + padded, *scale_y = scale_x + padded;
        /* The aim of the query again: its scales turn gradients of places into gradients of offsets. */
        if (grad_reference) memset(grad_reference, 0, call->levels * width * sizeof(real));
        for (int64_t l = 0, s = 0; l < call->levels; s += call->points[l++])
            N(aim)(call, row, l, s, call->points[l], shift_x, shift_y, scale_x, scale_y);
        for (int64_t head = 0; head < heads; head++) {
            real *of_logit = grad + (2 * heads + head) * samples, *of_offset = grad + head * samples * 2, total = 0;
            const real *offset = offsets + head * samples * 2, *logits = offsets + (2 * heads + head) * samples;
            /* Through the softmax: weight times (its gradient - the weighted mean of all gradients). */
            const real share = N(soften)(logits, samples, padded, own->weights, &highest);
            for (int64_t s = 0; s < samples; s++) total += own->weights[s] * share * of_logit[s];
            for (int64_t s = 0; s < samples; s++) of_logit[s] = own->weights[s] * share * (of_logit[s] - total);
            /* The centre moves all samples of a level alike, the size of a box moves each by its offset. Summed up
             * over heads, and before the offsets' gradients are scaled, because these sums need them in pixels. */
            for (int64_t l = 0, s = 0; l < call->levels && grad_reference; l++) {
                real to_y = call->shapes[2 * l], to_x = call->shapes[2 * l + 1], x = 0, y = 0, w = 0, h = 0;
                for (int64_t end = s + call->points[l]; s < end; s++) {
                    x += of_offset[2 * s];
                    y += of_offset[2 * s + 1];
                    w += of_offset[2 * s] * offset[2 * s];
                    h += of_offset[2 * s + 1] * offset[2 * s + 1];
                }
                real *to = grad_reference + l * width, half = (real)0.5 / call->points[l];
                to[0] += x * to_x;
                to[1] += y * to_y;
                if (width == 4 && call->points[l]) {
                    to[2] += w * to_x * half;
                    to[3] += h * to_y * half;
                }
            }
            /* From pixels to offsets. */
            for (int64_t s = 0; s < samples; s++) {
                of_offset[2 * s] *= scale_x[s];
                of_offset[2 * s + 1] *= scale_y[s];
            }
        }
    }
}

#undef LANES
#undef PASTE_
#undef PASTE
#undef N
#undef vec
#undef ivec
#undef AT
#undef PUT
#undef IAT
#undef IPUT
#undef EVEN
#undef ODD
#undef COUNT_UP
#undef PICK
#undef ROTATE
