"""One training step of a recipe: forward, matching, losses, backward, clipping, update."""

from dataclasses import replace

import torch

from benchmarks.cases import ONLY_WHEN_NAMED, STEP_CASES, StepCase, deformable
from benchmarks.model.batch import make
from benchmarks.report import Measurement
from deformable_detr.models import DeformableDETR, build
from deformable_detr.models.losses import Criterion
from deformable_detr.runs.config import TrainConfig
from deformable_detr.runs.recipes import RECIPES, with_backbone
from deformable_detr.training.optimizer import clip_gradients, learning_rate, make_optimizer

_FIRST_STEPS = 3


def names() -> list[str]:
    """Every measurement, as training_step/CASE."""
    return [f"training_step/{case}" for case in STEP_CASES]


def only_when_named(name: str) -> bool:
    """Whether the measurement is left out of a run that names none."""
    return name.split("/")[1] in ONLY_WHEN_NAMED


def contenders(name: str, device: str) -> list[str]:
    """Nothing to choose between within one version of the code."""
    return ["auto"]


def prepare(name: str, contender: str, device: str) -> Measurement:
    """A model from random weights and one batch that never changes."""
    case = STEP_CASES[name.split("/")[1]]
    config = with_backbone(RECIPES[case.recipe](), name=None, weights="none")
    config = replace(config, model=replace(deformable(config), num_classes=case.classes))
    images, padding_mask, targets = make(case.size_hw, case.batch, case.objects, case.classes, device)
    criterion = Criterion(config.criterion).to(device)
    model, optimizer = _start(config, case, device)

    def step() -> float:
        losses = criterion(model(images, padding_mask), targets)
        optimizer.zero_grad(set_to_none=True)
        losses.total.backward()
        clip_gradients(model, config.optimizer.clip_norm)
        optimizer.step()
        return float(losses.total.detach())

    def check() -> list[float]:
        """The losses of the first steps; they must be finite and must fall."""
        nonlocal model, optimizer
        model, optimizer = _start(config, case, device)
        totals = [step() for _ in range(_FIRST_STEPS)]
        if not all(map(torch.isfinite, torch.tensor(totals))) or totals[-1] >= totals[0]:
            raise AssertionError(f"the loss does not fall: {totals}")
        return totals

    return Measurement(check, step)


def _start(config: TrainConfig, case: StepCase, device: str) -> tuple[DeformableDETR, torch.optim.AdamW]:
    torch.manual_seed(0)
    model = build(deformable(config)).to(device).train()
    return model, make_optimizer(model, config.optimizer, learning_rate(config.optimizer, case.batch))
