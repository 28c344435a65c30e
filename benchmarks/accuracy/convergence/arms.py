"""Arms of the comparison: which network is trained for how many epochs, with which learning rate and seed.

All arms share the task, the backbone with its weights and frozen parts, channels, heads, layers, queries, images per
step, augmentation (a flip, nothing else), averaging of the weights, and the evaluator. Every arm is a complete schedule
with its own drop of the learning rate: after two thirds for DETR, after four fifths for the others, as published.

DETR and the arm with a single level have the last stage of the backbone dilated, stride 16: of stride 32, pictures of
160 x 128 pixels have 20 tokens.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import nn

from benchmarks.accuracy.convergence.networks import own_levels, sigmoid_detr
from benchmarks.accuracy.convergence.scenes import Task
from deformable_detr.core.config import apply_overrides
from deformable_detr.data.augmentation.settings import Augmentation
from deformable_detr.models.interface import ModelConfig
from deformable_detr.runs.config import TrainConfig
from deformable_detr.runs.recipes import detr_small, dino_small, small, with_image_size

Stage = Literal["pilot", "grid", "curves", "table2", "yardstick"]
STAGES: tuple[Stage, ...] = get_args(Stage)
FACTORS = (0.5, 1.0, 2.0)
"""Factors on the default learning rate that are tried, each on `GRID_SEED`."""
GRID_SEED = 100
"""Seed of the runs that a learning rate is chosen by. It is nobody else's: a run that was chosen as the best of three
would count for its arm twice."""
OTHER_SEEDS = 3
"""Most seeds of the arms that are not decisive."""
FASTER_RCNN = "faster_rcnn"
_SHARED = {
    "backbone": "mobilenetv2_100",
    "frozen_stages": 2,
    "hidden_dim": 128,
    "num_heads": 4,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "ffn_dim": 512,
    "num_queries": 30,
    "dropout": 0.0,
}


class Family(NamedTuple):
    """Network of some arms."""

    label: str
    """For tables and curves."""
    recipe: Callable[[], TrainConfig]
    """Gives the kind of network and the default learning rate."""
    settings: Mapping[str, Any] = {}
    """Settings of the network beyond those that all share."""
    drop_at: float = 0.8
    """Share of the steps after which the learning rate falls to a tenth."""
    tuned_as: str = "deformable"
    """Group whose learning rate it has."""
    network: Callable[[ModelConfig], nn.Module] | None = None
    """Builds a network that the package does not know from the settings; None if it does."""


_DETR = {"dilation": True}
FAMILIES: dict[str, Family] = {
    "detr": Family("DETR", detr_small, _DETR, 2 / 3, "detr"),
    "detr_focal": Family("DETR, focal loss", detr_small, _DETR, 2 / 3, "detr", sigmoid_detr),
    "base": Family("Deformable DETR", small, {"variant": "base", "proposals": "paper"}),
    "refine": Family("Deformable DETR, refinement", small, {"variant": "refine", "proposals": "paper"}),
    "two_stage": Family("Deformable DETR, two-stage", small, {"variant": "two_stage", "proposals": "distinct"}),
    "dino": Family("DINO", dino_small, {"denoising_queries": 30}),
    "single_k1": Family(
        "one level, K = 1",
        small,
        {"variant": "base", "proposals": "paper", "num_levels": 1, "dilation": True}
        | {"encoder_points": 1, "decoder_points": 1},
    ),
    "inputs_k1": Family(
        "four levels, own level only, K = 1",
        small,
        {"variant": "base", "proposals": "paper", "encoder_points": 1, "decoder_points": 1},
        network=own_levels,
    ),
    "inputs_k4": Family(
        "four levels, own level only, K = 4", small, {"variant": "base", "proposals": "paper"}, network=own_levels
    ),
    "full_k1": Family(
        "four levels, all levels, K = 1",
        small,
        {"variant": "base", "proposals": "paper", "encoder_points": 1, "decoder_points": 1},
    ),
}
TABLE_2 = ("single_k1", "inputs_k1", "inputs_k4", "full_k1", "base")
"""Families of the ablation; "base" is the row with four levels, all levels, K = 4."""
TUNED: dict[str, tuple[str, int]] = {"detr": ("detr", 4), "deformable": ("base", 10), FASTER_RCNN: (FASTER_RCNN, 10)}
"""For each group of learning rates the family it is chosen with, and the divisor of the epochs for that. Families
without a group of their own have the rate of Deformable DETR."""


class Arm(NamedTuple):
    """A run of the comparison."""

    family: str
    epochs: int
    factor: float
    """On the default learning rate."""
    seed: int

    @property
    def name(self) -> str:
        """Name of its files."""
        return f"{self.family}_{self.epochs}_x{self.factor:g}_s{self.seed}"


def share(epochs: int, divisor: float) -> int:
    """Epochs of a shorter schedule, at least 1."""
    return max(1, round(epochs / divisor))


def grid_arms(group: str, epochs: int) -> list[Arm]:
    """Arms that a group's learning rate is chosen by."""
    family, divisor = TUNED[group]
    return [Arm(family, share(epochs, divisor), factor, GRID_SEED) for factor in FACTORS]


def arms_of(stage: Stage, epochs: int, seeds: int, rates: Mapping[str, float]) -> list[Arm]:
    """Arms of a stage in the order in which they should be trained: all of one seed before the next.

    Args:
        stage: pilot, grid, curves, table2 or yardstick.
        epochs: longest schedule of DETR; the others follow from it.
        seeds: number of seeds of the two decisive arms, DETR's longest and Deformable DETR's of a tenth of it. Others
            have at most three.
        rates: chosen factors on the learning rate by group. The stage "yardstick" begins with choosing its own.

    Raises:
        SystemExit: the stage needs a learning rate that is not chosen yet.
    """
    if stage == "pilot":
        return [Arm("two_stage", share(epochs, 20), 1.0, 0), Arm("detr", share(epochs, 10 / 3), 1.0, 0)]
    if stage == "grid":
        return [arm for group in ("detr", "deformable") for arm in grid_arms(group, epochs)]
    if stage == "yardstick":
        if FASTER_RCNN not in rates:
            return grid_arms(FASTER_RCNN, epochs)
        return [
            Arm(FASTER_RCNN, share(epochs, divisor), rates[FASTER_RCNN], seed)
            for seed in range(min(seeds, OTHER_SEEDS))
            for divisor in (10, 5, 2)
        ]
    wanted: list[tuple[str, float, int]] = []
    for seed in range(seeds):
        if stage == "curves":
            wanted += [("detr", 1, seed), ("base", 10, seed)]
        if seed < OTHER_SEEDS:
            wanted += _others(stage, seed)
    missing = {FAMILIES[family].tuned_as for family, _, _ in wanted} - rates.keys()
    if missing:
        raise SystemExit(f"no learning rate has been chosen for {', '.join(sorted(missing))}; run the stage grid first")
    arms = [
        Arm(family, share(epochs, divisor), rates[FAMILIES[family].tuned_as], seed) for family, divisor, seed in wanted
    ]
    return list(dict.fromkeys(arms))  # of few epochs, two shares may be equal


def _others(stage: Stage, seed: int) -> Iterable[tuple[str, float, int]]:
    if stage == "table2":
        return [(family, 10, seed) for family in TABLE_2]
    budgets = [("detr", 2), ("detr", 4), ("base", 20), ("base", 5)]
    budgets += [(family, divisor) for family in ("refine", "two_stage") for divisor in (20, 10, 5)]
    return [(family, divisor, seed) for family, divisor in [*budgets, ("dino", 10), ("detr_focal", 1)]]


def config_of(arm: Arm, task: Task, backbone_weights: str, overrides: Iterable[str] = ()) -> TrainConfig:
    """Settings of an arm's run; not for Faster R-CNN.

    Args:
        arm: the arm.
        task: gives the size of the pictures and the number of classes.
        backbone_weights: as for `ddetr train`; "none" freezes nothing.
        overrides: settings of all arms that differ from those of the comparison, as "model.num_queries=50".
    """
    family = FAMILIES[arm.family]
    recipe = family.recipe()
    settings = {**_SHARED, **family.settings, "backbone_weights": backbone_weights}
    settings["num_classes"] = len(task.record["style"]["classes"])
    if backbone_weights == "none":
        settings |= {"frozen_stages": 0, "frozen_batch_norm": False}
    model: Any = recipe.model
    config = replace(recipe, name=arm.family, model=replace(model, **settings))
    config = with_image_size(config, task.short_side).with_settings(
        {
            "augmentation": replace(
                Augmentation(crop_probability=0.0).scaled(task.short_side),
                short_sides=(task.short_side,),
                max_side=_longest(task),
            ),
            "optimizer.base_lr": recipe.optimizer.base_lr * arm.factor,
            "schedule.epochs": arm.epochs,
            "schedule.drop_at": family.drop_at,
            "run.batch_size": 4,
            "run.fit_queries": False,
            "run.eval_every": 1,
            "run.log_every": 50,
            "run.seed": arm.seed,
            # Everything in one process: its CPU time is then that of the run.
            "data.num_workers": 0,
            "compute.precision": "float32",
            "compute.products": "pytorch",
            "checkpoints.keep_last": 1,
            "checkpoints.save_every": 0.0,
        }
    )
    return apply_overrides(config, list(overrides))


def _longest(task: Task) -> int:
    """Longest side that leaves every picture as it is."""
    return max(task.long_side, round(task.short_side * 1333 / 800))


def network_of(arm: Arm, config: TrainConfig) -> nn.Module | None:
    """Network of an arm that the package does not know; None for its own. This seeds torch's global generator."""
    make = FAMILIES[arm.family].network
    if make is None:
        return None
    torch.manual_seed(config.run.seed)
    return make(config.model)
