"""AdamW with the paper's three parameter groups, its step schedule and gradient clipping (arXiv 2010.04159, A.2)."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from deformable_detr.errors import ConfigError

_OFFSETS = ("sampling_offsets", "reference_points")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """How weights follow gradients. The defaults are the paper's."""

    lr: float = 2e-4
    """Learning rate of everything but the backbone and the sampling offsets, for steps of `lr_batch_size` images."""
    lr_batch_size: int | None = 32
    """The batch `lr` is meant for: in force is lr x sqrt(batch / lr_batch_size). None: `lr` is used as it is."""
    backbone_lr_factor: float = 0.1
    """Learning rate of the backbone, as a share of the others'."""
    offsets_lr_factor: float = 0.1
    """Likewise of sampling offsets and reference points."""
    weight_decay: float = 1e-4
    clip_norm: float = 0.1
    """Largest 2-norm of all gradients together; 0 = no clipping."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises linearly from nearly nothing."""
    drop_at: float = 0.8
    """Share of all steps after which the learning rate falls to a tenth, 40 of 50 epochs in the paper; 1 = never."""

    def __post_init__(self) -> None:
        """Refuse values no run could mean."""
        for name in ("lr", "backbone_lr_factor", "offsets_lr_factor", "weight_decay", "clip_norm"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"optimizer.{name} is {value}; it must be a number of at least 0")
        if self.lr == 0:
            raise ConfigError("optimizer.lr is 0; nothing would be learnt")
        if self.lr_batch_size is not None and self.lr_batch_size < 1:
            raise ConfigError(f"optimizer.lr_batch_size is {self.lr_batch_size}; it must be at least 1 or null")
        if self.warmup_steps < 0:
            raise ConfigError(f"optimizer.warmup_steps is {self.warmup_steps}; it must be at least 0")
        if not 0 < self.drop_at <= 1:
            raise ConfigError(f"optimizer.drop_at is {self.drop_at}; it must be above 0 and at most 1")


def learning_rate(config: OptimizerConfig, batch_size: int) -> float:
    """What is in force for this batch: Adam's noise grows with 1/sqrt(batch), so the rate shrinks with sqrt(batch).

    The paper's 2e-4 belongs to 32 images a step; the same rate with a few images a step does not learn at all.
    """
    if config.lr_batch_size is None:
        return config.lr
    return config.lr * math.sqrt(batch_size / config.lr_batch_size)


def make_optimizer(model: nn.Module, config: OptimizerConfig, lr: float) -> torch.optim.AdamW:
    """AdamW over three groups: the backbone, the sampling offsets and reference points, and the rest.

    Frozen parameters are in none. Weight decay is on everything, biases and norms included, as in the paper.

    Args:
        model: what to train.
        config: factors of the groups and weight decay.
        lr: what `learning_rate` gave.
    """
    groups: dict[str, list[nn.Parameter]] = {"rest": [], "backbone": [], "offsets": []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[_group(name)].append(parameter)
    factors = {"rest": 1.0, "backbone": config.backbone_lr_factor, "offsets": config.offsets_lr_factor}
    settings: list[dict[str, Any]] = [
        {"params": parameters, "lr": lr * factors[name], "peak_lr": lr * factors[name]}
        for name, parameters in groups.items()
        if parameters
    ]
    # Fused: one pass over each parameter instead of a dozen.
    return torch.optim.AdamW(settings, weight_decay=config.weight_decay, fused=True)


def _group(name: str) -> str:
    if "backbone" in name.split("."):
        return "backbone"
    return "offsets" if any(part in name for part in _OFFSETS) else "rest"


def schedule(config: OptimizerConfig, step: int, total_steps: int) -> float:
    """Share of the peak learning rate at a step, counted from 0: linear warm-up, then 1, then 0.1."""
    warmup = min(1.0, (step + 1) / (config.warmup_steps + 1))
    return warmup * (0.1 if step >= round(config.drop_at * total_steps) else 1.0)


def set_learning_rate(optimizer: torch.optim.Optimizer, share: float) -> None:
    """Put every group at this share of its peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * share


def clip_gradients(model: nn.Module, clip_norm: float) -> float:
    """Scale gradients down to `clip_norm` if they are longer; returns their length before, one 2-norm over all."""
    parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
    limit = clip_norm if clip_norm > 0 else math.inf
    return float(nn.utils.clip_grad_norm_(parameters, limit))
