"""Optimizer: AdamW with the paper's parameter groups, learning rate schedules, clipping (arXiv 2010.04159, A.2)."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from deformable_detr.models import interface_of
from deformable_detr.runs.config import OptimizerConfig, ScheduleConfig
from deformable_detr.training.freezing import part_of
from deformable_detr.training.sharding import is_cut


def learning_rate(config: OptimizerConfig, batch_size: int) -> float:
    """Peak learning rate for this batch size: `lr` as it is, or, if it is "auto", `base_lr` scaled to the batch size.

    The noise of Adam's steps grows with 1 / sqrt(batch size), so the rate is scaled with sqrt(batch size). The paper's
    2e-4 is for 32 images per step; with this rate and a few images per step, a network does not learn at all.
    """
    if config.lr != "auto":
        return config.lr
    return config.base_lr * math.sqrt(batch_size / config.base_batch_size)


def make_optimizer(
    model: nn.Module,
    config: OptimizerConfig,
    lr: float,
    *,
    parts: Mapping[str, tuple[str, ...]] | None = None,
    offsets: Sequence[str] | None = None,
) -> torch.optim.AdamW:
    """AdamW with three parameter groups: the backbone, the sampling offsets and reference points, and the rest.

    There are more groups if encoder, decoder or heads have factors of their own. The first group has the rate `lr`
    itself. Frozen parameters are in no group. Weight decay acts on all parameters, biases and norms included, as in the
    paper.

    Args:
        model: network to train.
        config: factors of the groups, and weight decay.
        lr: peak learning rate, from `learning_rate`.
        parts: parts of the network by name, see `DetectionModel`; those of the network itself if left out.
        offsets: words in the names of offsets and reference points; those of the network itself if left out.
    """
    parts = interface_of(model).parts if parts is None else parts
    offsets = interface_of(model).offsets if offsets is None else offsets
    groups: dict[tuple[str, float], list[nn.Parameter]] = {("rest", 1.0): []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_offset = any(word in name for word in offsets)
            groups.setdefault(_group(part_of(name, parts), is_offset, config), []).append(parameter)
    order = ("rest", "backbone", "offsets")
    settings: list[dict[str, Any]] = [
        {"params": parameters, "lr": lr * factor, "peak_lr": lr * factor}
        for (_, factor), parameters in sorted(groups.items(), key=lambda group: order.index(group[0][0]))
        if parameters
    ]
    # Fused: one pass over each parameter instead of about ten.
    return torch.optim.AdamW(settings, weight_decay=config.weight_decay, fused=True)


def _group(part: str | None, is_offset: bool, config: OptimizerConfig) -> tuple[str, float]:
    """Parameter group as in the paper, and factor on the learning rate."""
    if part == "backbone":
        return "backbone", config.backbone_lr_factor
    factors = {
        "heads": config.heads_lr_factor,
        "encoder": config.encoder_lr_factor,
        "decoder": config.decoder_lr_factor,
    }
    factor = factors.get(part or "", 1.0)
    return ("offsets", config.offsets_lr_factor * factor) if is_offset else ("rest", factor)


def schedule_share(config: ScheduleConfig, step: int, total_steps: int) -> float:
    """Share of the peak learning rate at a step: linear warm-up, then the course that `config.shape` names.

    Args:
        config: settings of the schedule.
        step: number of the step, from 0.
        total_steps: number of steps of the whole run.
    """
    assert config.warmup_steps != "auto"
    warmup = min(1.0, (step + 1) / (config.warmup_steps + 1))
    begin = config.warmup_steps if config.shape == "cosine" else round(config.drop_at * total_steps)
    if step < begin:
        return warmup
    if config.shape == "step":
        return warmup * 0.1
    way = min(1.0, (step - begin) / max(1, total_steps - 1 - begin))
    return warmup * (config.final_factor + (1 - config.final_factor) * (1 + math.cos(math.pi * way)) / 2)


def set_learning_rate(optimizer: torch.optim.Optimizer, share: float) -> None:
    """Set the learning rate of every group to this share of its peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * share


def clip_gradients(model: nn.Module, clip_norm: float) -> float:
    """Clip the gradients to a norm, one 2-norm over all parameters.

    Args:
        model: network with gradients, which are changed.
        clip_norm: largest norm; 0 = no clipping.

    Returns:
        The norm before clipping.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
    limit = clip_norm if clip_norm > 0 else math.inf
    norm = nn.utils.clip_grad_norm_(parameters, limit)
    # With sharded weights each process has a part of every gradient, and so a part of the norm.
    return float(norm.full_tensor() if is_cut(norm) else norm)
