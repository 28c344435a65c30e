"""Models that start equal and learn from different losses: ours, and Deformable DETR of the library transformers.

Both sides have the same weights and say the same before the first step, which is checked. The side of transformers is
its own `DeformableDetrForObjectDetection` with its own loss, and all settings of its configuration that say nothing
about the architecture are its defaults, but for those an arm names.
"""

import copy
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from benchmarks.model.peer import peer
from deformable_detr.core.types import Batch, DetectorOutput, Predictions
from deformable_detr.models import DeformableDETR, DeformableDETRConfig, build
from deformable_detr.models.losses import Criterion, CriterionConfig
from deformable_detr.ops.adapters import accelerate
from deformable_detr.runs.config import OptimizerConfig
from deformable_detr.training import optimizer
from deformable_detr.weights.huggingface.keys import to_transformers_keys

OURS = "ours"
SAME = 1e-4
"""Largest difference of logits and boxes before the first step."""
_SHAKE = 0.01


class Arm(NamedTuple):
    """A side of the comparison."""

    label: str
    settings: dict[str, Any] | None
    """Of `DeformableDetrConfig`, beyond the architecture; None is our model with our loss."""


ARMS = {
    OURS: Arm("this project", None),
    "transformers": Arm("transformers, defaults", {}),
    "transformers_auxiliary": Arm("transformers, auxiliary_loss=True", {"auxiliary_loss": True}),
}


class Ours(nn.Module):
    """Our model with our loss."""

    def __init__(self, model: DeformableDETR) -> None:
        super().__init__()
        self.model = model
        self.criterion = Criterion(CriterionConfig())

    def forward(self, images: Tensor, padding_mask: Tensor) -> DetectorOutput:
        return self.model(images, padding_mask)

    def loss(self, batch: Batch) -> Tensor:
        """What a step minimises."""
        return self.criterion(self.model(batch.images, batch.padding_mask), batch.targets).total


class Theirs(nn.Module):
    """The model of transformers with its loss, which says what it sees in our form."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, padding_mask: Tensor) -> DetectorOutput:
        answer = self._answer(images, padding_mask)
        return DetectorOutput([Predictions(answer.logits, answer.pred_boxes)], None)

    def loss(self, batch: Batch) -> Tensor:
        """What a step minimises."""
        labels = [{"class_labels": target.labels, "boxes": target.boxes} for target in batch.targets]
        return cast(Tensor, self._answer(batch.images, batch.padding_mask, labels=labels).loss)

    def _answer(self, images: Tensor, padding_mask: Tensor, **labels: Any) -> Any:
        images = images.contiguous(memory_format=torch.channels_last)  # as our backbone does
        return self.model(images, pixel_mask=(~padding_mask).long(), **labels)


Learner = Ours | Theirs


def make_learner(name: str, config: DeformableDETRConfig, seed: int) -> Learner:
    """The model of an arm; all arms of one config and seed start from the same weights.

    Raises:
        ValueError: dropout, or a variant of ours that transformers does not have: nothing else may differ.
    """
    if config.dropout or config.proposals != "paper" or config.features != "padded":
        raise ValueError(
            f"dropout is {config.dropout}, proposals {config.proposals!r}, features {config.features!r}; "
            "a comparison needs 0, 'paper' and 'padded', where both sides are the same"
        )
    torch.manual_seed(seed)
    ours = build(config)
    settings = ARMS[name].settings
    if settings is None:
        return Ours(ours)
    theirs: Any = peer(config, **settings)
    # Its own way of freezing batch norm puts the plain kind in the place of timm's that has the activation in it, and
    # a MobileNet would be left without any. So both sides have the very same backbone, frozen alike.
    theirs.model.backbone.model = copy.deepcopy(ours.pyramid.backbone.body)
    theirs.load_state_dict(to_transformers_keys(ours.state_dict(), config))
    accelerate(theirs)  # the same sums, sooner
    return Theirs(theirs)


def make_optimizer(learner: nn.Module, config: OptimizerConfig, lr: float) -> torch.optim.AdamW:
    """Ours, in the same groups for any layout: backbone, offsets and reference points by their names, and the rest."""
    names = [name for name, _ in learner.named_parameters()]
    starts = {name[: name.index("backbone.") + len("backbone.")] for name in names if "backbone" in name.split(".")}
    parts = {"backbone": tuple(starts)}
    return optimizer.make_optimizer(learner, config, lr, parts=parts, offsets=("sampling_offsets", "reference_points"))


@torch.no_grad()
def difference(config: DeformableDETRConfig, name: str, seed: int, batch: Batch) -> float:
    """Largest difference between an arm's and our answer to a batch before the first step, logits and boxes alike.

    Raises:
        AssertionError: they are not the same.
    """
    ours, other = (make_learner(one, config, seed).eval()(batch.images, batch.padding_mask) for one in (OURS, name))
    found = max(float((one - two).detach().abs().max()) for one, two in zip(ours.final, other.final, strict=True))
    if not found <= SAME:
        raise AssertionError(f"{name} starts from other predictions than {OURS}: they differ by {found}")
    return found


def untrained(learner: Learner, batch: Batch) -> list[str]:
    """Modules to be trained that get no gradient, or none but zeros, from the loss of a batch, by the model's names.

    The learner's weights are shaken first, and stay so: a zero then comes from the loss, not from a first weight of
    zero. Of a module inside such a module only the outer one is named, of two names of the same weights only one.
    """
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.add_(_SHAKE * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    learner.train()
    learner.zero_grad(set_to_none=True)
    learner.loss(batch).backward()
    named: list[str] = []
    seen: set[nn.Parameter] = set()
    for name, module in sorted(learner.model.named_modules()):
        trained = {parameter for parameter in module.parameters() if parameter.requires_grad} - seen
        if trained and not any(parameter.grad is not None and parameter.grad.any() for parameter in trained):
            named.append(name)
            seen |= trained
    return named
