"""Weights of a network without the time that drawing each of them would take, and their comparison."""

import torch

from deformable_detr.models import MODELS


def weights_of(config):
    """Each parameter another part of the same numbers: none is like another, and a file of all of them is small."""
    with torch.device("meta"):
        own = MODELS.build(config, load_backbone_weights=False).state_dict()
    largest = max(tensor.numel() for tensor in own.values())
    pool = torch.randn(largest + len(own), generator=torch.Generator().manual_seed(0))
    return {
        name: pool[start : start + tensor.numel()].view(tensor.shape)
        for start, (name, tensor) in enumerate(own.items())
    }


def usable_weights_of(config):
    """Weights that a network can compute with, for they are small and variances positive; none shares memory."""
    return {name: 0.5 + one.abs() if "running_var" in name else 0.1 * one for name, one in weights_of(config).items()}


def same(first, second):
    """Whether two tables of tensors have the same names, shapes and values."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
