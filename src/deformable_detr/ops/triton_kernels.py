"""Triton kernels of the operator. A program handles a few queries of one head of one image.

Channels are the innermost axis of its tiles. `ops.triton_sampling` explains `second`, `third`, `sizes` and FORM.
"""

# mypy: allow-untyped-decorators
# The hook that checks shapes in tests must not wrap what Triton compiles, hence `no_type_check`.

from typing import no_type_check

import triton
import triton.language as tl

from deformable_detr.ops.triton_sampling import (
    channels_of,
    corners_of,
    level_of,
    queries_of,
    rows_of,
    samples_of,
    shares_of,
)


@triton.jit(do_not_specialize=["num_queries", "num_positions"])
@no_type_check
def forward_over_queries(
    result: tl.tensor,
    value: tl.tensor,
    second: tl.tensor,
    third: tl.tensor,
    num_queries: tl.tensor,
    num_positions: tl.tensor,
    sizes: tl.tuple,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    POINTS: tl.constexpr,
    SAMPLES: tl.constexpr,
    FORM: tl.constexpr,
    UNROLL: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PATCH_W: tl.constexpr,
) -> None:
    """Forward kernel for many queries: one tile (queries, channels), sample after sample.

    UNROLL samples are in flight at a time; it divides the points of every level.
    """
    LEVELS: tl.constexpr = len(POINTS)
    # The number of the image is int64, because offsets between images may need it; all others fit int32.
    head = tl.program_id(1)
    batch = tl.program_id(2).to(tl.int64)
    query, exists = queries_of(num_queries, sizes, BLOCK_Q, PATCH_W)
    place, weight_row = rows_of(second, third, batch, head, query, num_queries, HEADS, SAMPLES, FORM)
    channel = tl.arange(0, BLOCK_D)
    is_channel = channel < HEAD_DIM
    maps = value + batch * num_positions * (HEADS * HEAD_DIM) + head * HEAD_DIM
    # The largest logit comes first, so that no exponential of the softmax overflows. Their sum follows along the way.
    if FORM != 0:
        reference = second + batch * num_queries * (LEVELS * FORM) + query * (LEVELS * FORM)
        largest = tl.load(weight_row).to(tl.float32)
        for i in tl.static_range(1, SAMPLES):
            largest = tl.maximum(largest, tl.load(weight_row + i).to(tl.float32))
        total = tl.full([BLOCK_Q], 0.0, tl.float32)
    gathered = tl.full([BLOCK_Q, BLOCK_D], 0.0, tl.float32)
    # This loop is not unrolled: the pixels of all samples would not fit into the registers.
    for first in range(0, SAMPLES, UNROLL):
        # All samples of one round are in one level, so that its map and the references are loaded once for them.
        level, points, height, width, start = level_of(first, sizes, POINTS)
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
            # Offsets count pixels around a point, or half-boxes / points around a box (section 4.1).
            if FORM == 0:
                x, y = x * width - 0.5, y * height - 0.5
            elif FORM == 2:
                x, y = centre_x + x, centre_y + y
            else:
                x, y = centre_x + x * step_x, centre_y + y * step_y
            # Softmax without its division, which follows once for all samples. The GPU has an instruction for powers
            # of two only, hence the factor 1 / ln 2.
            if FORM != 0:
                weight = tl.exp2((weight - largest) * 1.4426950408889634)
                total += weight
            touches, pixels, sides, right_share, bottom_share = corners_of(x, y, width, height, start)
            shares = shares_of(weight, touches, sides, right_share, bottom_share)
            # A pixel off the map has share zero, so it can be loaded and added like the others.
            for corner in tl.static_range(4):
                pixel = channels_of(maps, pixels[corner][:, None], channel[None, :], HEADS, HEAD_DIM, BLOCK_D)
                gathered += shares[corner][:, None] * pixel
    if FORM != 0:
        gathered = gathered / total[:, None]
    # Queries that do not exist repeat another one, and are not stored.
    row = (query * HEADS + head) * HEAD_DIM
    result += batch * num_queries * (HEADS * HEAD_DIM)
    mask = exists[:, None] & is_channel[None, :]
    tl.store(result + row[:, None] + channel[None, :], gathered.to(result.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["num_queries", "num_positions"])
@no_type_check
def forward_over_samples(
    result: tl.tensor,
    value: tl.tensor,
    second: tl.tensor,
    third: tl.tensor,
    num_queries: tl.tensor,
    num_positions: tl.tensor,
    sizes: tl.tuple,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    POINTS: tl.constexpr,
    SAMPLES: tl.constexpr,
    FORM: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """Forward kernel for few queries: one tile (queries, samples, channels), all pixels of a query loaded at once."""
    head = tl.program_id(1)
    batch = tl.program_id(2).to(tl.int64)
    query, exists = queries_of(num_queries, sizes, BLOCK_Q, 0)
    # Place and weight of every sample at once, as tiles (queries, samples).
    x, y, weight, _x, _y, width, height, start = samples_of(
        second, third, batch, head, query, num_queries, sizes, HEADS, POINTS, SAMPLES, FORM, BLOCK_S
    )
    touches, pixels, sides, right_share, bottom_share = corners_of(x, y, width, height, start)
    shares = shares_of(weight, touches, sides, right_share, bottom_share)
    channel = tl.arange(0, BLOCK_D)
    is_channel = channel < HEAD_DIM
    maps = value + batch * num_positions * (HEADS * HEAD_DIM) + head * HEAD_DIM
    # Corners are added up per sample; the sum over samples, which moves data between threads, follows only once.
    gathered = tl.full([BLOCK_Q, BLOCK_S, BLOCK_D], 0.0, tl.float32)
    for corner in tl.static_range(4):
        pixel = channels_of(maps, pixels[corner][:, :, None], channel[None, None, :], HEADS, HEAD_DIM, BLOCK_D)
        gathered += shares[corner][:, :, None] * pixel
    row = (query * HEADS + head) * HEAD_DIM
    result += batch * num_queries * (HEADS * HEAD_DIM)
    mask = exists[:, None] & is_channel[None, :]
    gathered = tl.sum(gathered, axis=1).to(result.dtype.element_ty)
    tl.store(result + row[:, None] + channel[None, :], gathered, mask=mask)


@triton.jit
@no_type_check
def _dot(
    upstream: tl.tensor,
    maps: tl.tensor,
    pixel: tl.tensor,
    inside: tl.tensor,
    channel: tl.tensor,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> tl.tensor:
    """Dot products of a gradient (queries, 1, channels) with pixels (queries, samples); zero outside the map."""
    found = channels_of(maps, pixel[:, :, None], channel[None, None, :], HEADS, HEAD_DIM, BLOCK_D)
    return tl.where(inside, tl.sum(upstream * found, axis=2), 0.0)


@triton.jit(do_not_specialize=["num_queries", "num_positions"])
@no_type_check
def backward(
    grad: tl.tensor,
    value: tl.tensor,
    second: tl.tensor,
    third: tl.tensor,
    grad_value: tl.tensor,
    grad_second: tl.tensor,
    grad_third: tl.tensor,
    scale: tl.tensor,
    num_queries: tl.tensor,
    num_positions: tl.tensor,
    sizes: tl.tuple,
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
) -> None:
    """Backward kernel: gradients from the four dot products of the result's gradient with a sample's four pixels.

    Programs add to `grad_value` in any order. It is float32, or int64 in steps of 1 / `scale` with FIXED_POINT. With
    OF_LOCATION, the gradient written for (x, y) is that of the location, else that of the offset.
    """
    # The samples are located again as in the forward pass, which keeps none of them.
    head = tl.program_id(1)
    batch = tl.program_id(2).to(tl.int64)
    query, exists = queries_of(num_queries, sizes, BLOCK_Q, 0)
    x, y, weight, step_x, step_y, width, height, start = samples_of(
        second, third, batch, head, query, num_queries, sizes, HEADS, POINTS, SAMPLES, FORM, BLOCK_S
    )
    touches, pixels, sides, right_share, bottom_share = corners_of(x, y, width, height, start)
    shares = shares_of(weight, touches, sides, right_share, bottom_share)
    # Which of the four pixels exist: only they have a gradient, and only they count in the dot products.
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
    # Gradient of the result, one row of channels for each query, shared by all its samples.
    upstream = tl.load(grad + row[:, None] + channel[None, :], mask=is_channel[None, :], other=0.0).to(tl.float32)
    upstream = upstream[:, None, :]
    image = batch * num_positions * (HEADS * HEAD_DIM) + head * HEAD_DIM
    if WANTS_OTHERS:
        upper_left = _dot(upstream, value + image, pixels[0], inside[0], channel, HEADS, HEAD_DIM, BLOCK_D)
        upper_right = _dot(upstream, value + image, pixels[1], inside[1], channel, HEADS, HEAD_DIM, BLOCK_D)
        lower_left = _dot(upstream, value + image, pixels[2], inside[2], channel, HEADS, HEAD_DIM, BLOCK_D)
        lower_right = _dot(upstream, value + image, pixels[3], inside[3], channel, HEADS, HEAD_DIM, BLOCK_D)
        # The weight's gradient is the sample itself, interpolated between the four products. The location's is the
        # slope of that interpolation: the difference across, at the height of the sample, and likewise down.
        upper = upper_left + right_share * (upper_right - upper_left)
        lower = lower_left + right_share * (lower_right - lower_left)
        grad_weight = upper + bottom_share * (lower - upper)
        grad_x = upper_right - upper_left
        grad_x = weight * (grad_x + bottom_share * (lower_right - lower_left - grad_x))
        grad_y = weight * (lower - upper)
        # From pixels to the unit that was read: locations in 0..1, or offsets by the chain rule.
        if OF_LOCATION:
            step_x, step_y = width, height
        grad_x = tl.where(touches, grad_x * step_x, 0.0)
        grad_y = tl.where(touches, grad_y * step_y, 0.0)
        # Weights from a softmax: its gradient takes off the mean, because their sum is fixed.
        if FORM != 0:
            grad_weight = weight * (grad_weight - tl.sum(weight * grad_weight, axis=1)[:, None])
        place, weight_row = rows_of(grad_second, grad_third, batch, head, query, num_queries, HEADS, SAMPLES, FORM)
        sample = tl.arange(0, BLOCK_S)
        mask = exists[:, None] & (sample < SAMPLES)[None, :]
        xy = place[:, None, None] + (sample * 2)[None, :, None] + tl.arange(0, 2)[None, None, :]
        tl.store(xy, tl.join(grad_x, grad_y), mask=mask[:, :, None])
        tl.store(weight_row[:, None] + sample[None, :], grad_weight, mask=mask)
    # Each pixel gets its share of the result's gradient. Several samples may hit one pixel, hence the atomic additions.
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
    grad_reference: tl.tensor,
    grad_projection: tl.tensor,
    reference: tl.tensor,
    projection: tl.tensor,
    num_queries: tl.tensor,
    sizes: tl.tuple,
    HEADS: tl.constexpr,
    POINTS: tl.constexpr,
    SAMPLES: tl.constexpr,
    FORM: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_P: tl.constexpr,
) -> None:
    """Kernel that sums gradients of locations to those of the references, and turns them into those of offsets.

    The latter happens in place. A program handles one query with all its heads, so it needs no atomic additions.
    """
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
        # Every location moves with the centre, so that its gradient is the plain sum.
        centre = (query * LEVELS + level) * FORM
        tl.store(grad_reference + centre, tl.sum(tl.sum(grad_x, axis=1), axis=0))
        tl.store(grad_reference + centre + 1, tl.sum(tl.sum(grad_y, axis=1), axis=0))
        half_box = 0.5 / max(POINTS[level], 1)
        if FORM == 2:
            step_x = 1 / sizes[2 * level + 1]
            step_y = 1 / sizes[2 * level]
        else:
            # The size of a box scales the offsets. An offset that is not finite has gradient zero, and zero times it
            # would be NaN.
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
