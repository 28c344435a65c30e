"""Cost of the stages before they begin: seconds per step and per evaluated picture of every network, times the arms."""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from benchmarks.accuracy.convergence import faster_rcnn
from benchmarks.accuracy.convergence.arms import FASTER_RCNN, STAGES, TUNED, Arm, arms_of, config_of, network_of
from benchmarks.accuracy.convergence.rcnn import RCNNSettings
from benchmarks.accuracy.convergence.scenes import Task
from benchmarks.report import aligned, say
from deformable_detr.data.splits import open_training_data
from deformable_detr.evaluation.evaluate import evaluate
from deformable_detr.runs.config import TrainConfig, settled
from deformable_detr.runs.folder import RunFolder
from deformable_detr.training.autoconfig import fit_to_data
from deformable_detr.training.freezing import to_training_mode
from deformable_detr.training.loop import gradient_step
from deformable_detr.training.setup import set_up

_WARM_UP = 2
_EVALUATED = 24


class Cost(NamedTuple):
    """CPU seconds of a network."""

    step: float
    """Of a training step, reading included."""
    picture: float
    """Of a picture in evaluation."""
    parameters: int


def plan(
    task: Task, backbone_weights: str, overrides: Sequence[str], *, epochs: int, seeds: int, steps: int
) -> dict[str, Any]:
    """Measure every network, and print what the stages will take.

    Args:
        task: the data.
        backbone_weights: as for `ddetr train`.
        overrides: settings of all arms.
        epochs: longest schedule of DETR.
        seeds: number of seeds of the decisive arms.
        steps: timed steps of each network.
    """
    rates = dict.fromkeys(TUNED, 1.0)
    arms = {stage: arms_of(stage, epochs, seeds, rates) for stage in STAGES}
    families = list(dict.fromkeys(arm.family for own in arms.values() for arm in own))
    costs: dict[str, Cost] = {}
    for family in families:
        with tempfile.TemporaryDirectory() as folder:
            arm = Arm(family, 1, 1.0, 0)
            costs[family] = measure(arm, task, backbone_weights, overrides, steps, Path(folder))
        say(f"{family}: {costs[family].step:.3f} s a step, {1000 * costs[family].picture:.0f} ms a picture")
    num_val = int(task.record["images"]["val"])

    def hours(arm: Arm) -> float:
        cost = costs[arm.family]
        batch_size = config_of(arm._replace(family="base"), task, backbone_weights, overrides).run.batch_size
        assert batch_size != "auto"
        steps_per_epoch = max(1, task.num_train // batch_size)
        return arm.epochs * (steps_per_epoch * cost.step + num_val * cost.picture) / 3600

    grid = arms_of("yardstick", epochs, seeds, {})
    arms["yardstick"] = list(dict.fromkeys([*grid, *arms["yardstick"]]))
    # An arm that two stages have is trained once.
    seen: set[Arm] = set()
    stages: dict[str, dict[str, float]] = {}
    for stage, own in arms.items():
        new = [arm for arm in own if arm not in seen]
        seen |= set(new) if stage != "pilot" else set()
        stages[stage] = {"arms": len(new), "epochs": sum(a.epochs for a in new), "core_hours": sum(map(hours, new))}
    rows = [(name, str(one["arms"]), str(one["epochs"]), f"{one['core_hours']:.1f}") for name, one in stages.items()]
    say(aligned(("stage", "arms", "epochs", "core hours"), rows))
    return {
        "epochs": epochs,
        "seeds": seeds,
        "pictures": task.record["images"],
        "costs": {name: cost._asdict() for name, cost in costs.items()},
        "stages": stages,
    }


def measure(arm: Arm, task: Task, backbone_weights: str, overrides: Sequence[str], steps: int, folder: Path) -> Cost:
    """CPU seconds of an arm's network."""
    if arm.family == FASTER_RCNN:
        config = config_of(arm._replace(family="base"), task, backbone_weights, overrides)
        return Cost(*faster_rcnn.measure(config, RCNNSettings(), task.folder, steps, _EVALUATED))
    config = config_of(arm, task, backbone_weights, overrides)
    return cost_of(config, network_of(arm, config), task.folder, steps, folder)


def cost_of(config: TrainConfig, model: nn.Module | None, data_folder: Path, steps: int, folder: Path) -> Cost:
    """CPU seconds of a run's network, by a few steps and pictures.

    Args:
        config: settings of the run.
        model: network that the package does not know; None builds that of the settings.
        data_folder: data set to take pictures from.
        steps: timed steps.
        folder: empty folder for the run, which is not kept.
    """
    data = open_training_data(data_folder, val_share=0.1, seed=0, skip_bad_images=False)
    config, _ = fit_to_data(config, data.train)
    run = set_up(config, RunFolder(folder), data, "", device=torch.device("cpu"), weights=True, model=model)
    to_training_mode(run.model, ())
    run.loader.set_epoch(0)
    began, done = 0.0, 0
    batches = iter(run.loader)
    for number in range(_WARM_UP + steps):
        if number == _WARM_UP:
            began = time.process_time()
        batch = next(batches, None)
        if batch is None:
            run.loader.set_epoch(1)
            batches = iter(run.loader)
            batch = next(batches)
        gradient_step(run.learner, batch)
        done += number >= _WARM_UP
    step = (time.process_time() - began) / done
    few = data.val.subset(list(range(min(_EVALUATED, len(data.val)))))
    began = time.process_time()
    evaluate(run.judged(), few, batch_size=min(4, settled(config.run.batch_size)))
    picture = (time.process_time() - began) / len(few)
    return Cost(step, picture, sum(one.numel() for one in run.model.parameters()))
