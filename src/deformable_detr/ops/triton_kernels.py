"""The GPU kernels. A program handles a few queries of one head of one image; channels are its innermost axis.

FORM says what the second and third tensor are: 0 locations and weights, 2 reference points and projection, 4 reference
boxes and projection. Everything is float32 inside, whatever the tensors hold. Offsets are int32 within one image and
int64 between images. `sizes` are height and width of each level as floats, because Triton compiles anew for an int in a
tuple that is 1 or a multiple of 16, and images come in many sizes.
"""

# mypy: allow-untyped-defs, allow-untyped-decorators, ignore-missing-imports
# Arguments of kernels are pointers, scalars and tuples of them: there is no Python type to name. And the hook that
# checks shapes in tests must not wrap what Triton compiles, hence `no_type_check`.

from typing import no_type_check

import triton
import triton.language as tl


@triton.jit
@no_type_check
def _level_of(sample, sizes, POINTS: tl.constexpr):
    """Which level a sample belongs to, or each of several: its index, points, height, width and first position."""
    # Arguments lie in constant memory, so a few selects are cheaper than a table in global memory.
    level = sample * 0
    points = sample * 0.0 + POINTS[0]
    height = sample * 0.0 + sizes[0]
    width = sample * 0.0 + sizes[1]
    start = sample * 0
    first = 0
    next_start = tl.cast(sizes[0], tl.int32) * tl.cast(sizes[1], tl.int32)
    for i in tl.static_range(1, len(POINTS)):
        first += POINTS[i - 1]
        reached = sample >= first
        level = tl.where(reached, i, level)
        points = tl.where(reached, POINTS[i] * 1.0, points)
        height = tl.where(reached, sizes[2 * i], height)
        width = tl.where(reached, sizes[2 * i + 1], width)
        start = tl.where(reached, next_start, start)
        next_start += tl.cast(sizes[2 * i], tl.int32) * tl.cast(sizes[2 * i + 1], tl.int32)
    return level, points, height, width, start


@triton.jit
@no_type_check
def _queries(num_queries, sizes, BLOCK_Q: tl.constexpr, PATCH_W: tl.constexpr):
    """Which queries this program handles, and which of them exist; the others repeat one that does.

    With PATCH_W, queries are the positions of the maps, and a program takes a patch of one map instead of a strip:
    what its queries look at then overlaps more.
    """
    block = tl.program_id(0)
    lane = tl.arange(0, BLOCK_Q)
    if PATCH_W == 0:
        query = block * BLOCK_Q + lane
        exists = query < num_queries
        query = tl.minimum(query, num_queries - 1)
    else:
        PATCH_H: tl.constexpr = BLOCK_Q // PATCH_W
        height = tl.cast(sizes[0], tl.int32)
        width = tl.cast(sizes[1], tl.int32)
        start = block * 0
        patch = block
        next_patch = tl.cdiv(height, PATCH_H) * tl.cdiv(width, PATCH_W)
        next_start = height * width
        for level in tl.static_range(1, len(sizes) // 2):
            level_height = tl.cast(sizes[2 * level], tl.int32)
            level_width = tl.cast(sizes[2 * level + 1], tl.int32)
            later = block >= next_patch
            height = tl.where(later, level_height, height)
            width = tl.where(later, level_width, width)
            start = tl.where(later, next_start, start)
            patch = tl.where(later, block - next_patch, patch)
            next_patch += tl.cdiv(level_height, PATCH_H) * tl.cdiv(level_width, PATCH_W)
            next_start += level_height * level_width
        # An integer division would cost as much as all the rest; the half keeps the quotient clear of rounding.
        across = tl.cdiv(width, PATCH_W)
        down = ((patch.to(tl.float32) + 0.5) / across.to(tl.float32)).to(tl.int32)
        row = down * PATCH_H + lane // PATCH_W
        column = (patch - down * across) * PATCH_W + lane % PATCH_W
        exists = (row < height) & (column < width)
        query = start + tl.minimum(row, height - 1) * width + tl.minimum(column, width - 1)
    return query, exists


@triton.jit
@no_type_check
def _rows(
    second, third, batch, head, query, num_queries, HEADS: tl.constexpr, SAMPLES: tl.constexpr, FORM: tl.constexpr
):
    """Where the (x, y) and the weights of a query and head begin: locations and weights, or offsets and logits."""
    if FORM == 0:
        row = query * HEADS + head
        place = second + batch * num_queries * (HEADS * SAMPLES * 2) + row * (SAMPLES * 2)
        weight = third + batch * num_queries * (HEADS * SAMPLES) + row * SAMPLES
    else:
        row = third + batch * num_queries * (HEADS * SAMPLES * 3) + query * (HEADS * SAMPLES * 3)
        place = row + head * (SAMPLES * 2)
        weight = row + (HEADS * SAMPLES * 2 + head * SAMPLES)
    return place, weight


@triton.jit
@no_type_check
def _corners(x, y, width, height, start):
    """Pixels around a point in pixel coordinates, clamped to the map, and what of them lies inside.

    Points that touch no pixel, NaN among them, move to pixel (0, 0) and are reported.
    """
    touches = (x > -1) & (x < width) & (y > -1) & (y < height)
    x = tl.where(touches, x, 0.0)
    y = tl.where(touches, y, 0.0)
    left = tl.floor(x)
    top = tl.floor(y)
    right_share = x - left
    bottom_share = y - top
    width = tl.cast(width, tl.int32)
    height = tl.cast(height, tl.int32)
    left = left.to(tl.int32)
    top = top.to(tl.int32)
    has_left = left >= 0
    has_top = top >= 0
    has_right = left < width - 1
    has_bottom = top < height - 1
    upper = start + tl.maximum(top, 0) * width
    lower = start + tl.minimum(top + 1, height - 1) * width
    right = tl.minimum(left + 1, width - 1)
    left = tl.maximum(left, 0)
    pixels = (upper + left, upper + right, lower + left, lower + right)
    sides = (has_left, has_right, has_top, has_bottom)
    return touches, pixels, sides, right_share, bottom_share


@triton.jit
@no_type_check
def _shares(weight, touches, sides, right_share, bottom_share):
    """How much each of the four pixels counts: nothing outside the map."""
    has_left, has_right, has_top, has_bottom = sides
    weight = tl.where(touches, weight, 0.0)
    left = tl.where(has_left, 1 - right_share, 0.0)
    right = tl.where(has_right, right_share, 0.0)
    upper = weight * tl.where(has_top, 1 - bottom_share, 0.0)
    lower = weight * tl.where(has_bottom, bottom_share, 0.0)
    return upper * left, upper * right, lower * left, lower * right


@triton.jit
@no_type_check
def _channels(maps, pixel, channel, HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """The channels of some pixels. Pixels are clamped to their map, so none needs a mask, which would cost registers."""
    offset = pixel * (HEADS * HEAD_DIM) + channel
    if BLOCK_D == HEAD_DIM:
        found = tl.load(maps + offset)
    else:
        found = tl.load(maps + offset, mask=channel < HEAD_DIM, other=0.0)
    return found.to(tl.float32)


@triton.jit
@no_type_check
def _dot(upstream, maps, pixel, inside, channel, HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Dot products of a gradient (queries, 1, channels) with pixels (queries, samples); zero outside the map."""
    found = _channels(maps, pixel[:, :, None], channel[None, None, :], HEADS, HEAD_DIM, BLOCK_D)
    return tl.where(inside, tl.sum(upstream * found, axis=2), 0.0)


@triton.jit(do_not_specialize=["num_queries", "num_positions"])
@no_type_check
def forward_over_queries(
    result,
    value,
    second,
    third,
    num_queries,
    num_positions,
    sizes,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    POINTS: tl.constexpr,
    SAMPLES: tl.constexpr,
    FORM: tl.constexpr,
    UNROLL: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PATCH_W: tl.constexpr,
):
    """For many queries: one tile (queries, channels), sample after sample.

    UNROLL samples are in flight at a time; it divides the points of every level.
    """
    LEVELS: tl.constexpr = len(POINTS)
    head = tl.program_id(1)
    batch = tl.program_id(2).to(tl.int64)
    query, exists = _queries(num_queries, sizes, BLOCK_Q, PATCH_W)
    place, weight_row = _rows(second, third, batch, head, query, num_queries, HEADS, SAMPLES, FORM)
    channel = tl.arange(0, BLOCK_D)
    is_channel = channel < HEAD_DIM
    maps = value + batch * num_positions * (HEADS * HEAD_DIM) + head * HEAD_DIM
    if FORM != 0:
        reference = second + batch * num_queries * (LEVELS * FORM) + query * (LEVELS * FORM)
        largest = tl.load(weight_row).to(tl.float32)
        for i in tl.static_range(1, SAMPLES):
            largest = tl.maximum(largest, tl.load(weight_row + i).to(tl.float32))
        total = tl.full([BLOCK_Q], 0.0, tl.float32)
    gathered = tl.full([BLOCK_Q, BLOCK_D], 0.0, tl.float32)
    # Not unrolled: the pixels of all samples would not fit the registers.
    for first in range(0, SAMPLES, UNROLL):
        level, points, height, width, start = _level_of(first, sizes, POINTS)
        if FORM != 0:
            centre_x = tl.load(reference + level * FORM).to(tl.float32) * width - 0.5
            centre_y = tl.load(reference + level * FORM + 1).to(tl.float32) * height - 0.5
        if FORM == 4:
            step_x = tl.load(reference + level * FORM + 2).to(tl.float32) * (0.5 / points) * width
            step_y = tl.load(reference + level * FORM + 3).to(tl.float32) * (0.5 / points) * height
        for i in tl.static_range(UNROLL):
            x = tl.load(place + 2 * (first + i)).to(tl.float32)
            y = tl.load(place + 2 * (first + i) + 1).to(tl.float32)
            weight = tl.load(weight_row + first + i).to(tl.float32)
            if FORM == 0:
                x, y = x * width - 0.5, y * height - 0.5
            elif FORM == 2:
                x, y = centre_x + x, centre_y + y
            else:
                x, y = centre_x + x * step_x, centre_y + y * step_y
            if FORM != 0:
                weight = tl.exp2((weight - largest) * 1.4426950408889634)
                total += weight
            touches, pixels, sides, right_share, bottom_share = _corners(x, y, width, height, start)
            shares = _shares(weight, touches, sides, right_share, bottom_share)
            for corner in tl.static_range(4):
                pixel = _channels(maps, pixels[corner][:, None], channel[None, :], HEADS, HEAD_DIM, BLOCK_D)
                gathered += shares[corner][:, None] * pixel
    if FORM != 0:
        gathered = gathered / total[:, None]
    row = (query * HEADS + head) * HEAD_DIM
    result += batch * num_queries * (HEADS * HEAD_DIM)
    mask = exists[:, None] & is_channel[None, :]
    tl.store(result + row[:, None] + channel[None, :], gathered.to(result.dtype.element_ty), mask=mask)


@triton.jit
@no_type_check
def _samples(
    second,
    third,
    batch,
    head,
    query,
    num_queries,
    sizes,
    HEADS: tl.constexpr,
    POINTS: tl.constexpr,
    SAMPLES: tl.constexpr,
    FORM: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """All samples of some queries, as tiles (queries, samples): where, with which weight, in which map.

    `step` is by how many pixels the point moves when what was read as (x, y) grows by one.
    """
    LEVELS: tl.constexpr = len(POINTS)
    sample = tl.arange(0, BLOCK_S)
    level, points, height, width, start = _level_of(sample, sizes, POINTS)
    place, weight_row = _rows(second, third, batch, head, query, num_queries, HEADS, SAMPLES, FORM)
    known = (sample < SAMPLES)[None, :]
    xy = place[:, None, None] + (sample * 2)[None, :, None] + tl.arange(0, 2)[None, None, :]
    x, y = tl.split(tl.load(xy, mask=known[:, :, None], other=float("nan")).to(tl.float32))
    height, width, start, points = height[None, :], width[None, :], start[None, :], points[None, :]
    if FORM == 0:
        weight = tl.load(weight_row[:, None] + sample[None, :], mask=known, other=0.0).to(tl.float32)
        step_x, step_y = width, height
        x, y = x * width - 0.5, y * height - 0.5
    else:
        logit = tl.load(weight_row[:, None] + sample[None, :], mask=known, other=float("-inf")).to(tl.float32)
        weight = tl.exp2((logit - tl.max(logit, axis=1)[:, None]) * 1.4426950408889634)
        weight = weight / tl.sum(weight, axis=1)[:, None]
        box = second + batch * num_queries * (LEVELS * FORM) + ((query * LEVELS)[:, None] + level[None, :]) * FORM
        centre_x = tl.load(box).to(tl.float32) * width - 0.5
        centre_y = tl.load(box + 1).to(tl.float32) * height - 0.5
        if FORM == 2:
            step_x, step_y = tl.full([1, BLOCK_S], 1.0, tl.float32), tl.full([1, BLOCK_S], 1.0, tl.float32)
            x, y = centre_x + x, centre_y + y
        else:
            step_x = tl.load(box + 2).to(tl.float32) * (0.5 / points) * width
            step_y = tl.load(box + 3).to(tl.float32) * (0.5 / points) * height
            x, y = centre_x + x * step_x, centre_y + y * step_y
    return x, y, weight, step_x, step_y, width, height, start


@triton.jit(do_not_specialize=["num_queries", "num_positions"])
@no_type_check
def forward_over_samples(
    result,
    value,
    second,
    third,
    num_queries,
    num_positions,
    sizes,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    POINTS: tl.constexpr,
    SAMPLES: tl.constexpr,
    FORM: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """For few queries: one tile (queries, samples, channels), so that all pixels of a query are loaded at once."""
    head = tl.program_id(1)
    batch = tl.program_id(2).to(tl.int64)
    query, exists = _queries(num_queries, sizes, BLOCK_Q, 0)
    x, y, weight, _x, _y, width, height, start = _samples(
        second, third, batch, head, query, num_queries, sizes, HEADS, POINTS, SAMPLES, FORM, BLOCK_S
    )
    touches, pixels, sides, right_share, bottom_share = _corners(x, y, width, height, start)
    shares = _shares(weight, touches, sides, right_share, bottom_share)
    channel = tl.arange(0, BLOCK_D)
    is_channel = channel < HEAD_DIM
    maps = value + batch * num_positions * (HEADS * HEAD_DIM) + head * HEAD_DIM
    gathered = tl.full([BLOCK_Q, BLOCK_S, BLOCK_D], 0.0, tl.float32)
    for corner in tl.static_range(4):
        pixel = _channels(maps, pixels[corner][:, :, None], channel[None, None, :], HEADS, HEAD_DIM, BLOCK_D)
        gathered += shares[corner][:, :, None] * pixel
    row = (query * HEADS + head) * HEAD_DIM
    result += batch * num_queries * (HEADS * HEAD_DIM)
    mask = exists[:, None] & is_channel[None, :]
    gathered = tl.sum(gathered, axis=1).to(result.dtype.element_ty)
    tl.store(result + row[:, None] + channel[None, :], gathered, mask=mask)


@triton.jit(do_not_specialize=["num_queries", "num_positions"])
@no_type_check
def backward(
    grad,
    value,
    second,
    third,
    grad_value,
    grad_second,
    grad_third,
    scale,
    num_queries,
    num_positions,
    sizes,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    POINTS: tl.constexpr,
    SAMPLES: tl.constexpr,
    FORM: tl.constexpr,
    WANTS_VALUE: tl.constexpr,
    WANTS_OTHERS: tl.constexpr,
    OF_LOCATION: tl.constexpr,
    FIXED_POINT: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Gradients from four dot products per sample, of the result's gradient with the four pixels.

    `grad_value` is float32, or int64 counting `scale` with FIXED_POINT; programs add to it in any order. What is
    written for (x, y) is the gradient of the location instead of the offset with OF_LOCATION.
    """
    head = tl.program_id(1)
    batch = tl.program_id(2).to(tl.int64)
    query, exists = _queries(num_queries, sizes, BLOCK_Q, 0)
    x, y, weight, step_x, step_y, width, height, start = _samples(
        second, third, batch, head, query, num_queries, sizes, HEADS, POINTS, SAMPLES, FORM, BLOCK_S
    )
    touches, pixels, sides, right_share, bottom_share = _corners(x, y, width, height, start)
    shares = _shares(weight, touches, sides, right_share, bottom_share)
    has_left, has_right, has_top, has_bottom = sides
    inside = (
        touches & has_top & has_left,
        touches & has_top & has_right,
        touches & has_bottom & has_left,
        touches & has_bottom & has_right,
    )
    channel = tl.arange(0, BLOCK_D)
    is_channel = channel < HEAD_DIM
    row = batch * num_queries * (HEADS * HEAD_DIM) + (query * HEADS + head) * HEAD_DIM
    upstream = tl.load(grad + row[:, None] + channel[None, :], mask=is_channel[None, :], other=0.0).to(tl.float32)
    upstream = upstream[:, None, :]
    image = batch * num_positions * (HEADS * HEAD_DIM) + head * HEAD_DIM
    if WANTS_OTHERS:
        upper_left = _dot(upstream, value + image, pixels[0], inside[0], channel, HEADS, HEAD_DIM, BLOCK_D)
        upper_right = _dot(upstream, value + image, pixels[1], inside[1], channel, HEADS, HEAD_DIM, BLOCK_D)
        lower_left = _dot(upstream, value + image, pixels[2], inside[2], channel, HEADS, HEAD_DIM, BLOCK_D)
        lower_right = _dot(upstream, value + image, pixels[3], inside[3], channel, HEADS, HEAD_DIM, BLOCK_D)
        upper = upper_left + right_share * (upper_right - upper_left)
        lower = lower_left + right_share * (lower_right - lower_left)
        grad_weight = upper + bottom_share * (lower - upper)
        grad_x = upper_right - upper_left
        grad_x = weight * (grad_x + bottom_share * (lower_right - lower_left - grad_x))
        grad_y = weight * (lower - upper)
        if OF_LOCATION:
            step_x, step_y = width, height
        grad_x = tl.where(touches, grad_x * step_x, 0.0)
        grad_y = tl.where(touches, grad_y * step_y, 0.0)
        if FORM != 0:
            grad_weight = weight * (grad_weight - tl.sum(weight * grad_weight, axis=1)[:, None])
        place, weight_row = _rows(grad_second, grad_third, batch, head, query, num_queries, HEADS, SAMPLES, FORM)
        sample = tl.arange(0, BLOCK_S)
        mask = exists[:, None] & (sample < SAMPLES)[None, :]
        xy = place[:, None, None] + (sample * 2)[None, :, None] + tl.arange(0, 2)[None, None, :]
        tl.store(xy, tl.join(grad_x, grad_y), mask=mask[:, :, None])
        tl.store(weight_row[:, None] + sample[None, :], grad_weight, mask=mask)
    if WANTS_VALUE:
        for corner in tl.static_range(4):
            offset = (pixels[corner] * (HEADS * HEAD_DIM))[:, :, None] + channel[None, None, :]
            mask = (inside[corner] & exists[:, None])[:, :, None]
            if BLOCK_D != HEAD_DIM:
                mask = mask & is_channel[None, None, :]
            if FIXED_POINT:
                steps = (shares[corner] * tl.load(scale))[:, :, None] * upstream
                tl.atomic_add(grad_value + image + offset, steps.to(tl.int64), mask=mask, sem="relaxed")
            else:
                part = shares[corner][:, :, None] * upstream
                tl.atomic_add(grad_value + image + offset, part, mask=mask, sem="relaxed")


@triton.jit(do_not_specialize=["num_queries"])
@no_type_check
def reference_gradient(
    grad_reference,
    grad_projection,
    reference,
    projection,
    num_queries,
    sizes,
    HEADS: tl.constexpr,
    POINTS: tl.constexpr,
    SAMPLES: tl.constexpr,
    FORM: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Sums gradients of locations to those of the reference, and turns them into gradients of offsets in place."""
    LEVELS: tl.constexpr = len(POINTS)
    batch = tl.program_id(1).to(tl.int64)
    query = batch * num_queries + tl.program_id(0)
    head = tl.arange(0, BLOCK_H)[:, None]
    point = tl.arange(0, BLOCK_P)[None, :]
    first = 0
    for level in tl.static_range(LEVELS):
        at = query * (HEADS * SAMPLES * 3) + (head * SAMPLES + first + point) * 2
        mask = (head < HEADS) & (point < POINTS[level])
        grad_x = tl.load(grad_projection + at, mask=mask, other=0.0)
        grad_y = tl.load(grad_projection + at + 1, mask=mask, other=0.0)
        centre = (query * LEVELS + level) * FORM
        tl.store(grad_reference + centre, tl.sum(tl.sum(grad_x, axis=1), axis=0))
        tl.store(grad_reference + centre + 1, tl.sum(tl.sum(grad_y, axis=1), axis=0))
        half_box = 0.5 / max(POINTS[level], 1)
        if FORM == 2:
            step_x = 1 / sizes[2 * level + 1]
            step_y = 1 / sizes[2 * level]
        else:
            # An offset that is not finite led nowhere, and zero times it would be NaN.
            x = tl.load(projection + at, mask=mask, other=0.0).to(tl.float32)
            y = tl.load(projection + at + 1, mask=mask, other=0.0).to(tl.float32)
            x = tl.where(grad_x != 0, grad_x * x, 0.0) * half_box
            y = tl.where(grad_y != 0, grad_y * y, 0.0) * half_box
            tl.store(grad_reference + centre + 2, tl.sum(tl.sum(x, axis=1), axis=0))
            tl.store(grad_reference + centre + 3, tl.sum(tl.sum(y, axis=1), axis=0))
            step_x = tl.load(reference + centre + 2).to(tl.float32) * half_box
            step_y = tl.load(reference + centre + 3).to(tl.float32) * half_box
        tl.store(grad_projection + at, tl.where(grad_x != 0, grad_x * step_x, 0.0), mask=mask)
        tl.store(grad_projection + at + 1, tl.where(grad_y != 0, grad_y * step_y, 0.0), mask=mask)
        first += POINTS[level]
