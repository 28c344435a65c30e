"""GPU backend: choice of the Triton kernel and its tile sizes, and the tensors that it writes."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from deformable_detr.core.types import SpatialShapes

try:
    from deformable_detr.ops.triton_kernels import (
        backward,
        forward_over_queries,
        forward_over_samples,
        reference_gradient,
    )
except ImportError as error:  # PyTorch for macOS and some builds for Windows come without Triton
    _MISSING: str | None = str(error)
else:
    _MISSING = None

Gradients = tuple[Tensor, Tensor, Tensor]

# Fusing a product and a sum is off by default from Triton 3.10 on; half of the kernels' work is such pairs.
_OPTIONS = {"num_stages": 1, "enable_fp_fusion": True}
# From this number of queries on, tiles that hold one sample at a time are enough to fill a GPU.
_MANY_QUERIES = 4096
# Elements (query, channel) of one pixel for each warp, and warps of a program: patches of 8 x 4 queries of 32 channels.
_QUERIES_TILE, _QUERIES_WARPS = 256, 4
# Elements (query, sample, channel) of each of four pixels for each warp. More elements share the arithmetic of the
# locations. Fewer leave registers free, which atomic additions need on GPUs that add single numbers, not four at once.
_FORWARD_TILE, _BACKWARD_TILE, _SCALAR_TILE = 1024, 512, 128
_LARGEST_TILE = 16384
_LARGEST_WARPS = 16
_LARGEST_GRID = 65535
_LARGEST_OFFSET = 2**31
_LARGEST_SIDE = 2**24  # float32 holds all integers up to here
_MOST_PATCHES = 2**20  # the kernel divides such numbers in float32 without error


def why_not(value: Tensor, spatial_shapes: SpatialShapes, num_points: tuple[int, ...], num_queries: int) -> str | None:
    """Reason why the kernels cannot run on such tensors, or None."""
    if _MISSING is not None:
        return f"Triton cannot be imported: {_MISSING}"
    if torch.version.hip is not None:
        return "its kernels are tested for NVIDIA GPUs only"
    if value.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"it computes in float32, value is {value.dtype}"
    major, minor = _capability(value.device)
    if major < 8:
        return f"it needs a GPU of compute capability 8.0, this one has {major}.{minor}"
    return _too_large(value, spatial_shapes, num_points, num_queries)


def _too_large(
    value: Tensor, spatial_shapes: SpatialShapes, num_points: tuple[int, ...], num_queries: int
) -> str | None:
    batch, positions, heads, head_dim = value.shape
    sides = [side for height_width in spatial_shapes for side in height_width]
    if min(sides, default=1) < 1 or max(sides, default=1) >= _LARGEST_SIDE:
        return f"sides of maps are between 1 and {_LARGEST_SIDE - 1}, not {tuple(spatial_shapes)}"
    largest = heads * max(positions * head_dim, num_queries * max(head_dim, 3 * sum(num_points)))
    if largest >= _LARGEST_OFFSET:
        return f"one image has {largest} numbers, and its offsets are 32-bit integers"
    if max(batch, heads) > _LARGEST_GRID:
        return f"{batch} images of {heads} heads exceed {_LARGEST_GRID}, what a grid can hold"
    return None


def sample(value: Tensor, locations: Tensor, weights: Tensor, shapes: Sequence[int], points: Sequence[int]) -> Tensor:
    """Weighted sums of bilinear samples at given locations; the arguments are those of `reference.sample`."""
    return _forward(value, locations, weights, shapes, points, 0)


def attend(
    value: Tensor, reference: Tensor, projection: Tensor, shapes: Sequence[int], points: Sequence[int]
) -> Tensor:
    """Weighted sums of bilinear samples for references and a projection; see `reference.locations_and_weights`."""
    return _forward(value, reference, projection, shapes, points, reference.shape[-1])


def sample_backward(
    grad: Tensor,
    value: Tensor,
    locations: Tensor,
    weights: Tensor,
    shapes: Sequence[int],
    points: Sequence[int],
    wanted: Sequence[bool],
) -> Gradients:
    """Gradients of value, locations and weights; empty where not wanted."""
    grad_value, grad_locations, grad_weights = _backward(grad, value, locations, weights, shapes, points, wanted, 0)
    return (
        _given(grad_value, value, wanted[0]),
        _given(grad_locations, locations, wanted[1]),
        _given(grad_weights, weights, wanted[2]),
    )


def attend_backward(
    grad: Tensor,
    value: Tensor,
    reference: Tensor,
    projection: Tensor,
    shapes: Sequence[int],
    points: Sequence[int],
    wanted: Sequence[bool],
) -> Gradients:
    """Gradients of value, reference and projection; empty where not wanted."""
    grad_value, grad_reference, grad_projection = _backward(
        grad, value, reference, projection, shapes, points, wanted, reference.shape[-1]
    )
    return (
        _given(grad_value, value, wanted[0]),
        _given(grad_reference, reference, wanted[1]),
        _given(grad_projection, projection, wanted[2]),
    )


def _forward(
    value: Tensor, second: Tensor, third: Tensor, shapes: Sequence[int], points: Sequence[int], form: int
) -> Tensor:
    batch, positions, heads, head_dim = value.shape
    queries, samples = second.shape[1], sum(points)
    if 0 in (batch * positions * heads * head_dim, queries, samples):
        return value.new_zeros(batch, queries, heads, head_dim)
    result = value.new_empty(batch, queries, heads, head_dim)
    tensors = (result, value.contiguous(), second.contiguous(), third.contiguous())
    sizes = tuple(float(side) for side in shapes)
    block_d, block_s = _power_of_two(head_dim), _power_of_two(samples)
    model = {"HEADS": heads, "HEAD_DIM": head_dim, "POINTS": tuple(points), "SAMPLES": samples, "FORM": form}
    with torch.cuda.device_of(value):
        # Few queries fill the GPU only if each loads all its samples at once; many do so sample by sample.
        if queries < _MANY_QUERIES and block_s * block_d <= _LARGEST_TILE:
            block_q, warps = _samples_tile(block_s * block_d, _FORWARD_TILE)
            forward_over_samples[(_blocks(queries, block_q), heads, batch)](
                *tensors, queries, positions, sizes, **model,
                BLOCK_Q=block_q, BLOCK_S=block_s, BLOCK_D=block_d, num_warps=warps, **_OPTIONS,
            )  # fmt: skip
        else:
            block_q, patch_w, blocks = _queries_tile(shapes, positions, queries, block_d)
            forward_over_queries[(blocks, heads, batch)](
                *tensors, queries, positions, sizes, **model, UNROLL=_unroll(points),
                BLOCK_Q=block_q, BLOCK_D=block_d, PATCH_W=patch_w, num_warps=_QUERIES_WARPS, **_OPTIONS,
            )  # fmt: skip
    return result


def _backward(
    grad: Tensor,
    value: Tensor,
    second: Tensor,
    third: Tensor,
    shapes: Sequence[int],
    points: Sequence[int],
    wanted: Sequence[bool],
    form: int,
) -> Gradients:
    """Gradients in the types that the kernels write; those not wanted may be empty."""
    batch, positions, heads, head_dim = value.shape
    queries, samples = second.shape[1], sum(points)
    if 0 in (batch * positions * heads * head_dim, queries, samples):
        return torch.zeros_like(value), torch.zeros_like(second), torch.zeros_like(third)
    grad, value, second, third = (tensor.contiguous() for tensor in (grad, value, second, third))
    wants_value, wants_others = wanted[0], wanted[1] or wanted[2]
    # Atomic additions come in any order. Integers give the same sum in every order, which deterministic mode needs.
    fixed_point = wants_value and torch.are_deterministic_algorithms_enabled()
    scale = _steps_per_one(grad, third, queries, samples, form) if fixed_point else grad
    sums = torch.int64 if fixed_point else torch.float32
    # Only the gradient of the values is added to; the kernel writes every number of the other two.
    grad_value = torch.zeros(value.shape if wants_value else (0,), dtype=sums, device=value.device)
    grad_second = torch.empty(second.shape if wants_others else (0,), dtype=torch.float32, device=value.device)
    grad_third = torch.empty(third.shape if wants_others else (0,), dtype=torch.float32, device=value.device)
    sizes = tuple(float(side) for side in shapes)
    block_d, block_s = _power_of_two(head_dim), _power_of_two(samples)
    tile = _backward_tile(value, wants_value, fixed_point)
    block_q, warps = _samples_tile(block_s * block_d, tile)
    model = {"HEADS": heads, "POINTS": tuple(points), "SAMPLES": samples, "FORM": form}
    # The gradient of a reference sums over all heads, which no program of `backward` sees: a second kernel does it.
    sums_reference = form != 0 and wanted[1]
    with torch.cuda.device_of(value):
        backward[(_blocks(queries, block_q), heads, batch)](
            grad, value, second, third, grad_value, grad_second, grad_third, scale, queries, positions, sizes, **model,
            HEAD_DIM=head_dim, WANTS_VALUE=wants_value, WANTS_OTHERS=wants_others, OF_LOCATION=sums_reference,
            FIXED_POINT=fixed_point, BLOCK_Q=block_q, BLOCK_S=block_s, BLOCK_D=block_d, num_warps=warps, **_OPTIONS,
        )  # fmt: skip
        if sums_reference:
            reference_gradient[(queries, batch)](
                grad_second, grad_third, second, third, queries, sizes, **model,
                BLOCK_H=_power_of_two(heads), BLOCK_P=_power_of_two(max(points)), num_warps=1, **_OPTIONS,
            )  # fmt: skip
    if fixed_point:
        grad_value = grad_value.to(torch.float32).div_(scale)
    return grad_value, grad_second, grad_third


def _given(gradient: Tensor, tensor: Tensor, want: bool) -> Tensor:
    return gradient.to(tensor.dtype) if want else tensor.new_empty(0)


def _steps_per_one(grad: Tensor, weights: Tensor, queries: int, samples: int, form: int) -> Tensor:
    """Number of integer steps per 1.0 in fixed-point sums: the largest power of two with which no sum overflows.

    A pixel gets at most `queries * samples` parts, none larger than the largest gradient times the largest weight. If
    the weights are a softmax, it gets at most `queries` such parts. For 20 000 queries of 16 samples one part is then
    exact to 2**-43 of the largest, while float32 itself is exact to 2**-24.
    """
    bound = grad.abs().amax().double()
    if form == 0:
        bound = bound * weights.abs().amax() * samples
    # 2**126 is the last power whose inverse float32 holds in full.
    exponent = (61 - torch.frexp(bound * queries).exponent).clamp(max=126)
    scale = torch.ldexp(torch.ones_like(bound), exponent)
    return scale.where(bound.isfinite(), math.nan).float()


def _queries_tile(shapes: Sequence[int], positions: int, queries: int, block_d: int) -> tuple[int, int, int]:
    """Queries of a program, columns of its patch of a map (0 for a strip), and the number of programs."""
    block_q = max(1, _QUERIES_WARPS * _QUERIES_TILE // block_d)
    if queries == positions:  # an encoder: queries of a patch look at the same pixels
        patch_w = _power_of_two(math.isqrt(block_q - 1) + 1)
        patch_h = block_q // patch_w
        blocks = sum(_blocks(h, patch_h) * _blocks(w, patch_w) for h, w in zip(shapes[::2], shapes[1::2], strict=True))
        if blocks < _MOST_PATCHES:
            return block_q, patch_w, blocks
    return block_q, 0, _blocks(queries, block_q)


def _samples_tile(elements: int, of_a_warp: int) -> tuple[int, int]:
    """Queries and warps of a program, for queries of `elements` (sample, channel) each."""
    queries = min(16, max(1, of_a_warp // elements))
    return queries, min(_LARGEST_WARPS, max(1, queries * elements // of_a_warp))


def _backward_tile(value: Tensor, wants_value: bool, fixed_point: bool) -> int:
    adds_four_at_once = _capability(value.device) >= (9, 0) and not fixed_point
    return _BACKWARD_TILE if adds_four_at_once or not wants_value else _SCALAR_TILE


def _capability(device: torch.device) -> tuple[int, int]:
    properties = torch.cuda.get_device_properties(device)
    return properties.major, properties.minor


def _unroll(points: Sequence[int]) -> int:
    """Number of samples in flight at once: at most 4, and a divisor of the points of every level."""
    return next(count for count in (4, 3, 2, 1) if all(number % count == 0 for number in points))


def _blocks(whole: int, part: int) -> int:
    return -(-whole // part)


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()
