"""Weights of a DETR with which its queries find different things."""

import torch

from deformable_detr.models import build_detr


def distinct_weights_of(config):
    """Weights with which no two queries find the same; with plain random ones they all do."""
    torch.manual_seed(4)
    weights = build_detr(config, load_backbone_weights=False).state_dict()
    gains = {
        "self_attention.out_proj.weight": 0.5,
        "cross_attention.out_proj.weight": 2.0,
        "linear2.weight": 0.5,
        "queries.weight": 3.0,
        "box_head.layers.2.weight": 12.0,
        "class_head.weight": 3.0,
    }
    for name, tensor in weights.items():
        if "running_var" in name:
            tensor.uniform_(0.5, 1.5)
        elif tensor.dim() == 1 and tensor.is_floating_point():
            tensor.add_(0.1 * torch.randn_like(tensor))
        if name.endswith("in_proj_weight"):
            tensor[: 2 * len(tensor) // 3] *= 4.0  # queries and keys
        tensor *= next((gain for end, gain in gains.items() if name.endswith(end)), 1)
    return weights
