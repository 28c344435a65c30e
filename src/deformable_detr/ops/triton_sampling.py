"""Parts that the Triton kernels share: the queries of a program, and the places and weights of their samples.

FORM is the kind of the second and third tensor: 0 for locations and weights, 2 for reference points and a projection,
4 for reference boxes and a projection. All arithmetic is in float32, whatever the tensors hold. Offsets are int32
within one image and int64 between images. `sizes` holds height and width of each level as floats: Triton compiles
anew for an int in a tuple that is 1 or a multiple of 16, and images come in many sizes.
"""

# mypy: allow-untyped-decorators
# The hook that checks shapes in tests must not wrap what Triton compiles, hence `no_type_check`.

from typing import no_type_check

import triton
import triton.language as tl


@triton.jit
@no_type_check
def level_of(
    sample: tl.tensor,
    sizes: tl.tuple,
    POINTS: tl.constexpr,
) -> tl.tuple:
    """Level of a sample or of each of several: its index, points, height, width and first position."""
    # Arguments lie in constant memory, so a few selections are faster than a table in global memory.
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
def queries_of(
    num_queries: tl.tensor,
    sizes: tl.tuple,
    BLOCK_Q: tl.constexpr,
    PATCH_W: tl.constexpr,
) -> tl.tuple:
    """Queries of this program, and a mask of those that exist; the others repeat one that does.

    With PATCH_W, queries are the positions of the maps, and a program takes a patch of one map instead of a strip.
    The pixels that its queries look at then overlap more.
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
        # Find the level that holds this patch: patches are counted level after level.
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
        # From the number of the patch to its row and column. A division of integers would take as long as all the
        # rest; in float32 the half keeps the quotient away from whole numbers, so that rounding does no harm.
        across = tl.cdiv(width, PATCH_W)
        down = ((patch.to(tl.float32) + 0.5) / across.to(tl.float32)).to(tl.int32)
        row = down * PATCH_H + lane // PATCH_W
        column = (patch - down * across) * PATCH_W + lane % PATCH_W
        exists = (row < height) & (column < width)
        query = start + tl.minimum(row, height - 1) * width + tl.minimum(column, width - 1)
    return query, exists


@triton.jit
@no_type_check
def rows_of(
    second: tl.tensor,
    third: tl.tensor,
    batch: tl.tensor,
    head: tl.tensor,
    query: tl.tensor,
    num_queries: tl.tensor,
    HEADS: tl.constexpr,
    SAMPLES: tl.constexpr,
    FORM: tl.constexpr,
) -> tl.tuple:
    """Pointers to the first (x, y) and the first weight of a query and head.

    In a projection they are offsets and logits.
    """
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
def corners_of(
    x: tl.tensor,
    y: tl.tensor,
    width: tl.tensor,
    height: tl.tensor,
    start: tl.tensor,
) -> tl.tuple:
    """Four pixels around a point in pixel coordinates, clamped to the map, and the sides that lie inside.

    Points that touch no pixel, NaN among them, move to pixel (0, 0); `touches` is False for them.
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
    # Clamped to the map, so that every pixel can be loaded without a mask; `sides` tells which of them count.
    upper = start + tl.maximum(top, 0) * width
    lower = start + tl.minimum(top + 1, height - 1) * width
    right = tl.minimum(left + 1, width - 1)
    left = tl.maximum(left, 0)
    pixels = (upper + left, upper + right, lower + left, lower + right)
    sides = (has_left, has_right, has_top, has_bottom)
    return touches, pixels, sides, right_share, bottom_share


@triton.jit
@no_type_check
def shares_of(
    weight: tl.tensor,
    touches: tl.tensor,
    sides: tl.tuple,
    right_share: tl.tensor,
    bottom_share: tl.tensor,
) -> tl.tuple:
    """Share of each of the four pixels in the result: weight times interpolation, zero outside the map."""
    has_left, has_right, has_top, has_bottom = sides
    weight = tl.where(touches, weight, 0.0)
    left = tl.where(has_left, 1 - right_share, 0.0)
    right = tl.where(has_right, right_share, 0.0)
    upper = weight * tl.where(has_top, 1 - bottom_share, 0.0)
    lower = weight * tl.where(has_bottom, bottom_share, 0.0)
    return upper * left, upper * right, lower * left, lower * right


@triton.jit
@no_type_check
def channels_of(
    maps: tl.tensor,
    pixel: tl.tensor,
    channel: tl.tensor,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> tl.tensor:
    """Channels of some pixels, in float32. Pixels are clamped to their map and need no mask.

    A mask would take registers and prevent vector loads.
    """
    offset = pixel * (HEADS * HEAD_DIM) + channel
    if BLOCK_D == HEAD_DIM:
        found = tl.load(maps + offset)
    else:
        found = tl.load(maps + offset, mask=channel < HEAD_DIM, other=0.0)
    return found.to(tl.float32)


@triton.jit
@no_type_check
def samples_of(
    second: tl.tensor,
    third: tl.tensor,
    batch: tl.tensor,
    head: tl.tensor,
    query: tl.tensor,
    num_queries: tl.tensor,
    sizes: tl.tuple,
    HEADS: tl.constexpr,
    POINTS: tl.constexpr,
    SAMPLES: tl.constexpr,
    FORM: tl.constexpr,
    BLOCK_S: tl.constexpr,
) -> tl.tuple:
    """Samples of some queries as tiles (queries, samples): place in pixels, weight, step and map.

    A step is the number of pixels that a sample moves when the (x, y) in memory grow by one.
    """
    LEVELS: tl.constexpr = len(POINTS)
    sample = tl.arange(0, BLOCK_S)
    level, points, height, width, start = level_of(sample, sizes, POINTS)
    place, weight_row = rows_of(second, third, batch, head, query, num_queries, HEADS, SAMPLES, FORM)
    known = (sample < SAMPLES)[None, :]
    # x and y are neighbours in memory: one load for both. Samples that only fill up the tile are NaN, so nowhere.
    xy = place[:, None, None] + (sample * 2)[None, :, None] + tl.arange(0, 2)[None, None, :]
    x, y = tl.split(tl.load(xy, mask=known[:, :, None], other=float("nan")).to(tl.float32))
    height, width, start, points = height[None, :], width[None, :], start[None, :], points[None, :]
    if FORM == 0:
        weight = tl.load(weight_row[:, None] + sample[None, :], mask=known, other=0.0).to(tl.float32)
        step_x, step_y = width, height
        x, y = x * width - 0.5, y * height - 0.5
    else:
        # The softmax over all samples of a head, which this tile holds (section 4.1).
        logit = tl.load(weight_row[:, None] + sample[None, :], mask=known, other=float("-inf")).to(tl.float32)
        weight = tl.exp2((logit - tl.max(logit, axis=1)[:, None]) * 1.4426950408889634)
        weight = weight / tl.sum(weight, axis=1)[:, None]
        # Offsets count pixels around a point, or half-boxes / points around a box.
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
