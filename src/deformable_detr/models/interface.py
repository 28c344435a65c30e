"""Interface of a network: everything that the rest of the package may ask of it.

Training, freezing, fine-tuning, sharding, checkpoints and reports work with any `torch.nn.Module` that has the members
of `DetectionModel`. A model that the package knows by name also has a settings class, a `build` function and one line
in `models/__init__.py`. Pass a module of your own to `train(model=...)`.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, get_args, runtime_checkable

from torch import Tensor, nn

from deformable_detr.core.errors import ConfigError
from deformable_detr.core.short_text import shown
from deformable_detr.core.types import ClassScores, DetectorOutput, Target
from deformable_detr.models.losses import CriterionConfig, Losses

GIVEN = "given"
"""Model name in checkpoints and in config.json for a network that was passed to `train` as a module."""
_LONGEST_CLASS_NAME = 1000


@runtime_checkable
class ModelConfig(Protocol):
    """Settings of a network, as a frozen dataclass."""

    @property
    def num_classes(self) -> int:
        """Number of classes; training takes it from the data set."""
        ...

    @property
    def pretrained_parts(self) -> tuple[str, ...]:
        """Parts that start from pre-trained weights, such as the backbone."""
        ...

    @property
    def free_settings(self) -> frozenset[str]:
        """Settings on which no weight tensor depends; they may differ from those of the weights that are loaded."""
        ...

    @property
    def downloads(self) -> str:
        """Downloads that building the network needs, in words; empty if there are none."""
        ...

    def describe(self) -> str:
        """Description in words, such as "two_stage, backbone resnet50 (weights: hub)"."""
        ...

    def with_classes(self, num_classes: int) -> "ModelConfig":
        """Settings for another number of classes."""
        ...

    def portable(self) -> "ModelConfig":
        """Settings for a checkpoint that may go to another machine: without folders of this one."""
        ...


class ClassRows(NamedTuple):
    """Weight tensors with one row per class, given by the beginnings of their names."""

    by_class: tuple[str, ...] = ()
    """Tensors whose row i belongs to class i. Fine-tuning keeps the rows of known classes and renews the others. Rows
    after those of the classes, such as that of "no object", are kept, too."""
    by_channel: tuple[str, ...] = ()
    """Tensors with as many rows as classes, where the meaning of row i does not depend on the classes."""


@runtime_checkable
class CriterionLike(Protocol):
    """Training criterion of a network: a `torch.nn.Module` that returns differentiable losses."""

    def __call__(self, output: DetectorOutput, targets: list[Target], *, num_boxes: float | None = None) -> Losses:
        """Losses of one batch.

        Args:
            output: predictions of the network.
            targets: ground truth, one for each image.
            num_boxes: divisor of the sums: the number of objects in the whole step, over all processes. If left out,
                the number of objects in this batch.
        """
        ...


@runtime_checkable
class AveragingCriterion(Protocol):
    """Criterion with a loss that is a weighted mean over all predictions, such as that of DETR.

    It is asked for the sum of the weights before the forward pass, so that this can be added up over all images of a
    step, also where they are in several parts or processes.
    """

    def total_weight(self, targets: list[Target]) -> float:
        """Sum of the weights that the predictions for these images have; it depends on the targets alone."""
        ...

    def __call__(
        self,
        output: DetectorOutput,
        targets: list[Target],
        *,
        num_boxes: float | None = None,
        total_weight: float | None = None,
    ) -> Losses:
        """Losses of one batch.

        Args:
            output: predictions of the network.
            targets: ground truth, one for each image.
            num_boxes: divisor of the sums, as for `CriterionLike`.
            total_weight: divisor of the weighted mean: the sum of the weights in the whole step. If left out, that of
                this batch.
        """
        ...


@runtime_checkable
class DetectionModel(Protocol):
    """Members that a `torch.nn.Module` needs for the rest of the package to work with it."""

    @property
    def num_classes(self) -> int:
        """Number of classes: channels of the class heads, without one for "no object"."""
        ...

    @property
    def parts(self) -> Mapping[str, tuple[str, ...]]:
        """Named parts, for freezing and learning rates: part name to the beginnings of its parameters' names.

        A parameter belongs to the first part that fits. The parts "backbone", "encoder", "decoder" and "heads" have
        learning-rate factors of their own in `OptimizerConfig`.
        """
        ...

    @property
    def offsets(self) -> tuple[str, ...]:
        """Words in names of parameters with the learning rate of sampling offsets, `offsets_lr_factor` (section 5)."""
        ...

    @property
    def class_rows(self) -> ClassRows:
        """Weight tensors with one row per class, for fine-tuning."""
        ...

    def __call__(self, images: Tensor, padding_mask: Tensor, targets: list[Target] | None = None) -> DetectorOutput:
        """Predictions of every decoder layer, and of the proposals in two-stage.

        Args:
            images: (batch, 3, height, width), normalised, padded at the right and at the bottom.
            padding_mask: (batch, height, width), True = padding.
            targets: ground truth, in training only, for networks that learn from noisy copies of it.
        """
        ...

    def layers(self) -> Sequence[nn.Module]:
        """Layers of similar cost, each called once per forward pass; they are compiled and recomputed one by one."""
        ...

    def gathered_together(self) -> Sequence[nn.Module]:
        """Modules that sharded training gathers as units, inner modules first.

        The weights of one unit are complete on every process at the same time.
        """
        ...

    def make_criterion(self, settings: CriterionConfig) -> CriterionLike:
        """Criterion that the network is trained with; it may be an `AveragingCriterion`."""
        ...


def interface_of(model: nn.Module) -> DetectionModel:
    """Network checked to have all members of `DetectionModel`; it is returned as it is.

    Raises:
        ConfigError: members are missing, which the message lists, or its `class_scores` cannot be.
    """
    if isinstance(model, DetectionModel):
        class_scores_of(model)
        return model
    wanted = [name for name in vars(DetectionModel) if not name.startswith("_")]
    missing = [name for name in wanted if not hasattr(model, name)]
    raise ConfigError(
        f"{type(model).__name__} cannot be trained as it is: it lacks {', '.join(missing)}; "
        "deformable_detr.models.interface.DetectionModel says what each of them is"
    )


class ModelKind(NamedTuple):
    """Model that the package knows by name: its settings class, network class and build function."""

    config_class: type[Any]
    """Settings class: a frozen dataclass that meets `ModelConfig`."""
    model_class: type[nn.Module]
    """Network class, which `build` returns; `parts`, `class_rows` and `class_scores` are attributes of the class."""
    build: Callable[..., nn.Module]
    """Build function `build(config, load_backbone_weights=True)`; False where a checkpoint brings all weights."""


@dataclass(frozen=True, kw_only=True)
class GivenModelConfig:
    """Settings of a network that was passed as a module: only its class and its number of classes are known."""

    class_name: str = ""
    """Module and name of the network's class, such as "my_package.nets.Dense"."""
    num_classes: int = 1
    """Number of classes; at least 1."""

    def __post_init__(self) -> None:
        """Refuse settings that no module can have.

        Raises:
            ConfigError: `class_name` is no name, or `num_classes` is below 1.
        """
        if len(self.class_name) > _LONGEST_CLASS_NAME or not self.class_name.isprintable():
            raise ConfigError(f"class_name is {shown(self.class_name)}, which cannot be the name of a class")
        if self.num_classes < 1:
            raise ConfigError(f"num_classes is {shown(self.num_classes)}; it must be at least 1")

    @property
    def pretrained_parts(self) -> tuple[str, ...]:
        """Parts that start from pre-trained weights: none are known."""
        return ()

    @property
    def free_settings(self) -> frozenset[str]:
        """Settings on which no weight tensor depends: none."""
        return frozenset()

    @property
    def downloads(self) -> str:
        """Downloads that building needs: none."""
        return ""

    def describe(self) -> str:
        """Description in words: the class of the module."""
        return f"the module {self.class_name}"

    def with_classes(self, num_classes: int) -> "GivenModelConfig":
        """Settings of a module of this class with another number of classes."""
        return replace(self, num_classes=num_classes)

    def portable(self) -> "GivenModelConfig":
        """Settings for a checkpoint: these, which hold no path."""
        return self


def given_config(model: nn.Module) -> GivenModelConfig:
    """Settings of a network that is passed as a module.

    Raises:
        ConfigError: the module is not a `DetectionModel`; the message lists the missing members.
    """
    return GivenModelConfig(class_name=class_name_of(model), num_classes=interface_of(model).num_classes)


def num_queries_of(model: ModelConfig | nn.Module) -> int | None:
    """Number of queries of a network, the most objects that it can find in an image; None if nobody knows."""
    number = getattr(model, "num_queries", None)
    return number if isinstance(number, int) else None


def class_scores_of(model: object) -> ClassScores:
    """Way from the logits of a network to class scores: its attribute `class_scores`, "sigmoid" if it has none.

    Args:
        model: the network, or its class.

    Raises:
        ConfigError: it has another value there.
    """
    scores: Any = getattr(model, "class_scores", "sigmoid")
    if scores not in get_args(ClassScores):
        raise ConfigError(f"class_scores is {shown(scores)}; there are {', '.join(get_args(ClassScores))}")
    found: ClassScores = scores
    return found


def training_tensors_of(model: object) -> tuple[str, ...]:
    """Beginnings of the names of tensors that training alone needs: the attribute `training_tensors`, else none.

    A label table is such a tensor. Weights to start from may lack them; those that such
    weights have and the network has not are ignored.

    Args:
        model: the network, or its class.
    """
    return tuple(getattr(model, "training_tensors", ()))


def class_name_of(model: nn.Module) -> str:
    """Module and name of a network's class, such as "my_package.nets.Dense"."""
    kind = type(model)
    return f"{kind.__module__}.{kind.__qualname__}"


class Models(dict[str, ModelKind]):
    """Models by name."""

    def config_classes(self) -> dict[str, type[Any]]:
        """Settings classes by model name, including that of modules that are passed to `train`."""
        return {name: kind.config_class for name, kind in self.items()} | {GIVEN: GivenModelConfig}

    def name_of(self, config: ModelConfig) -> str:
        """Model name that belongs to these settings."""
        return next(name for name, kind in self.config_classes().items() if type(config) is kind)

    def build(self, config: ModelConfig, *, load_backbone_weights: bool = True) -> nn.Module:
        """Network for these settings.

        Args:
            config: settings of a model that the package knows by name.
            load_backbone_weights: False where a checkpoint brings all weights afterwards.

        Raises:
            ConfigError: the network cannot be built, or its class is not of this package.
            CheckpointError: its initial weights cannot be downloaded or read.
        """
        if isinstance(config, GivenModelConfig):
            raise ConfigError(
                f"{config.class_name} is a class of somebody's own: build it yourself and hand it over with model=..."
            )
        return self[self.name_of(config)].build(config, load_backbone_weights=load_backbone_weights)

    def class_rows(self, config: ModelConfig) -> ClassRows:
        """Class rows of the network that belongs to these settings; none for a class that is not of this package."""
        return self._of_class(config, "class_rows", ClassRows())

    def parts(self, config: ModelConfig) -> Mapping[str, tuple[str, ...]]:
        """Named parts of the network that belongs to these settings; none for a class that is not of this package."""
        return self._of_class(config, "parts", {})

    def class_scores(self, config: ModelConfig) -> ClassScores | None:
        """Way from logits to class scores in the network of these settings; None for a class of one's own."""
        kind = self.get(self.name_of(config))
        return None if kind is None else class_scores_of(kind.model_class)

    def training_tensors(self, config: ModelConfig) -> tuple[str, ...]:
        """Beginnings of the names of tensors that training alone needs; none for a class of one's own."""
        kind = self.get(self.name_of(config))
        return () if kind is None else training_tensors_of(kind.model_class)

    def offsets(self, config: ModelConfig) -> tuple[str, ...] | None:
        """Words in names of parameters with the learning rate of sampling offsets; None for a class of one's own."""
        return self._of_class(config, "offsets", None)

    def _of_class(self, config: ModelConfig, attribute: str, unknown: Any) -> Any:
        kind = self.get(self.name_of(config))
        return unknown if kind is None else inspect.getattr_static(kind.model_class, attribute)
