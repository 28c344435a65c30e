"""The operator without the detector: what it needs, what it returns, which backends can run, and a gradient.

python examples/operator_alone.py
"""

import torch

from deformable_detr.ops import backends, multi_scale_deformable_attention


def main() -> torch.Tensor:
    """Two feature maps, five queries, and what each query gathers from them."""
    spatial_shapes = ((12, 20), (6, 10))  # (height, width) of each level, finest first
    positions = sum(height * width for height, width in spatial_shapes)
    batch, heads, head_dim, queries, points = 2, 4, 8, 5, 3

    value = torch.randn(batch, positions, heads, head_dim, requires_grad=True)
    # (x, y) in 0..1 of each map; what falls outside counts as zero.
    locations = torch.rand(batch, queries, heads, len(spatial_shapes), points, 2)
    # The operator takes weights as they are; a softmax over levels and points together is what the paper uses.
    scores = torch.randn(batch, queries, heads, len(spatial_shapes) * points)
    weights = scores.softmax(-1).unflatten(-1, (len(spatial_shapes), points))

    for name, reason in backends(value, spatial_shapes, locations, weights).items():
        print(f"backend {name}: {reason or 'can run'}")

    result = multi_scale_deformable_attention(value, spatial_shapes, locations, weights)
    print(f"result {tuple(result.shape)}: batch, queries, heads, head_dim")

    result.sum().backward()
    assert value.grad is not None
    touched = (value.grad != 0).any(-1).float().mean().item()
    print(f"{100 * touched:.0f} % of the positions were looked at")
    return result


if __name__ == "__main__":
    main()
