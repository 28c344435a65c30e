/* Pieces of work that share no output, in vectors of LANES. Included after simd.h, once per width. */

/* Where the samples of a query fall: place = coordinate * scale + shift, in pixels of the sample's level. */
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

/* Where the samples of queries `first` to `last` of the image of this pass fall, one after another. */
static INLINE void N(aim_queries)(const job *job, int64_t first, int64_t last, real *aim) {
    const msda_call *call = job->call;
    const int64_t padded = job->plan.padded;
    for (int64_t q = first; q < last; q++, aim += 4 * padded)
        for (int64_t l = 0, s = 0; l < call->levels; s += call->points[l++])
            N(aim)(call, job->image * call->queries + q, l, s, call->points[l], aim, aim + padded, aim + 2 * padded,
                   aim + 3 * padded);
}

/* Output rows of some queries and heads of the image of this pass. */
static INLINE void N(forward_rows)(const job *job, scratch *own, int64_t first, int64_t last, int64_t first_head,
                                   int64_t last_head, int kind) {
    const msda_call *call = job->call;
    const plan *plan = &job->plan;
    const int64_t samples = plan->samples, padded = plan->padded, heads = call->heads, dim = call->head_dim;
    const int64_t size = kind == KIND_REAL ? sizeof(real) : 2, some = last_head - first_head;
    const real *locations = call->locations, *weights = call->weights, *projection = call->projection;
    const int64_t head_step = (job->dense ? call->positions : 1) * dim * size;
    const char *value = (const char *)call->value + job->image * call->positions * heads * dim * size;
    const real *aims = plan->aim;
    if (job->dense) value = job->dense;
    if (projection && job->dense) {
        aims = job->aim + first * 4 * padded;
    } else if (projection) {
        N(aim_queries)(job, first, last, own->aim);
        aims = own->aim;
    }
    corners now = own->corners[0], next = own->corners[1];
    int64_t head_before = 0;
    char *output = NULL;
    for (int64_t i = 0, rows = (last - first) * some; i <= rows; i++) {
        const corners spare = now;
        const int64_t head = i == rows ? head_before : first_head + i % some;
        const int64_t row = job->image * call->queries + first + i / some;
        if (i < rows) {
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
            if (some == 1) { /* rows far apart, which the processor does not see coming */
                const int64_t step = projection ? 8 * heads * samples * 3 : 8 * heads * samples;
                const real *places = projection ? xy + step : xy + 2 * step;
                const int64_t logits = row * heads * samples * 3 + (2 * heads + head) * samples;
                const real *shares = (projection ? projection + logits : weight) + step;
                const char *to = (char *)call->output + ((row + 4) * heads + head) * dim * size;
                for (int64_t c = 0; c < dim * size; c += 64) __builtin_prefetch(to + c, 1);
                for (int64_t s = 0; s < 2 * samples; s += 64 / sizeof(real)) __builtin_prefetch(places + s);
                for (int64_t s = 0; s < samples; s += 64 / sizeof(real)) __builtin_prefetch(shares + s);
            }
            /* The last vector reads beyond the row, which only at the end of the memory is not its neighbour's. */
            const int64_t rows_left = call->batch * call->queries * heads - (row * heads + head);
            if (!projection && rows_left * samples < padded) {
                xy = memcpy(own->xy, xy, 2 * samples * sizeof(real));
                weight = memcpy(own->weights, weight, samples * sizeof(real));
            } else if (projection && rows_left * samples * 3 < 2 * padded) {
                xy = memcpy(own->xy, xy, 2 * samples * sizeof(real));
            }
            N(prepare)(plan, 0, padded, xy, weight, scale, aim, aim + padded, aim + 2 * padded, aim + 3 * padded, next);
        } else {
            next = now; /* nothing to fetch ahead */
        }
        if (i > 0)
            N(gather_row)(value + head_before * head_step, value + head * head_step, kind, dim, now, next, samples,
                          !job->dense, output);
        head_before = head;
        output = (char *)call->output + (row * heads + head) * dim * size;
        now = next;
        next = spare;
    }
}

/* Gradients that one image, head and level receive: no other task touches them, so nothing is added atomically and the
 * order of additions is the same for any number of threads. */
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
    /* A map of its own, dense and in full precision: always for halves, and where it is looked at often enough. */
    const int packs = kind != KIND_REAL || call->queries * points * 2 > size_of_map;
    if (packs) {
        char *dense = own->value;
        for (int64_t p = 0; p < size_of_map; p++) memcpy(dense + p * dim * size, value + p * stride * size, dim * size);
        value = dense;
        if (call->grad_value) memset(grad_value = own->grad_value, 0, size_of_map * dim * sizeof(real));
    } else if (grad_value) {
        for (int64_t p = 0; p < size_of_map; p++) memset(grad_value + p * stride, 0, dim * sizeof(real));
    }
    const int64_t block = points > BLOCK ? 1 : BLOCK / (points ? points : 1);
    plan here = level_plan(job, own, level, (packs ? dim : stride) * size);
    const int64_t room = here.padded;
    real *aim = own->aim, *xy = own->xy, *weight = own->weights, *dots = own->dots, *row_grad = own->row_grad;
    for (int64_t first = 0; first < call->queries && points; first += block) {
        const int64_t last = first + block < call->queries ? first + block : call->queries;
        const int64_t count = (last - first) * points, padded = (count + LANES - 1) / LANES * LANES;
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
        for (int64_t s = count; s < padded; s++) { /* nowhere */
            xy[2 * s] = xy[2 * s + 1] = NAN;
            weight[s] = own->share[s] = 0;
        }
        if (call->projection)
            for (int64_t s = 0; s < padded; s += LANES)
                PUT(weight + s) = N(exponential)(AT(weight + s)) * AT(own->share + s);
        const real *by = call->projection ? aim : here.aim;
        N(prepare)(&here, 0, padded, xy, weight, 1, by, by + room, by + 2 * room, by + 3 * room, own->corners[0]);
        if (wants_places) memset(dots, 0, 4 * room * sizeof(real));
        for (int64_t q = first; q < last; q++) {
            const int64_t at = ((image * call->queries + q) * heads + head) * dim;
            const real *grad = (const real *)call->grad + at;
            if (kind != KIND_REAL) { /* row by row, in full precision */
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
        real *along_x = own->found, *along_y = along_x + room, *of_weight = along_y + room;
        N(finish)(&here, padded, xy, weight, by, by + room, by + 2 * room, by + 3 * room, dots, room, along_x, along_y,
                  of_weight);
        for (int64_t q = first; q < last; q++) {
            const int64_t row = image * call->queries + q, s = (q - first) * points;
            const int64_t to = (row * heads + head) * samples + before;
            real *places = (real *)call->grad_locations + 2 * to, *weights = (real *)call->grad_weights + to;
            real to_x = width, to_y = height;
            if (call->projection) { /* turned into gradients of the projection by `backward_projection` */
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
    if (packs && call->grad_value)
        for (int64_t p = 0; p < size_of_map; p++)
            for (int64_t c = 0; c < dim; c += LANES) {
                int64_t some = dim - c < LANES ? dim - c : LANES;
                N(store)(call->grad_value, origin + p * stride + c, kind, some,
                         N(load)(grad_value, p * dim + c, KIND_REAL, some));
            }
}

/* The highest logit of each row and 1 / the sum of exponentials, once for all levels. */
static INLINE void N(softmax_queries)(const job *job, scratch *own, int64_t first, int64_t last) {
    const int64_t heads = job->call->heads, samples = job->plan.samples;
    for (int64_t row = first * heads; row < last * heads; row++) {
        const real *logits = (const real *)job->call->projection + (row / heads * 3 + 2) * heads * samples +
                             row % heads * samples;
        job->softmax[2 * row + 1] = N(soften)(logits, samples, job->plan.padded, own->weights, &job->softmax[2 * row]);
    }
}

/* From gradients of places in pixels and of weights to those of offsets, logits and references. */
static INLINE void N(backward_projection)(const job *job, scratch *own, int64_t first, int64_t last) {
    const msda_call *call = job->call;
    const int64_t heads = call->heads, samples = job->plan.samples, padded = job->plan.padded;
    const int64_t width = call->reference_size;
    for (int64_t row = first; row < last; row++) {
        const real *offsets = (const real *)call->projection + row * heads * samples * 3;
        real *grad = (real *)call->grad_projection + row * heads * samples * 3, highest;
        real *grad_reference = call->grad_reference ? (real *)call->grad_reference + row * call->levels * width : NULL;
        real *shift_x = own->aim, *shift_y = shift_x + padded, *scale_x = shift_y + padded, *scale_y = scale_x + padded;
        if (grad_reference) memset(grad_reference, 0, call->levels * width * sizeof(real));
        for (int64_t l = 0, s = 0; l < call->levels; s += call->points[l++])
            N(aim)(call, row, l, s, call->points[l], shift_x, shift_y, scale_x, scale_y);
        for (int64_t head = 0; head < heads; head++) {
            real *of_logit = grad + (2 * heads + head) * samples, *of_offset = grad + head * samples * 2, total = 0;
            const real *offset = offsets + head * samples * 2, *logits = offsets + (2 * heads + head) * samples;
            const real share = N(soften)(logits, samples, padded, own->weights, &highest);
            for (int64_t s = 0; s < samples; s++) total += own->weights[s] * share * of_logit[s];
            for (int64_t s = 0; s < samples; s++) of_logit[s] = own->weights[s] * share * (of_logit[s] - total);
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
