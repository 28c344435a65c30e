"""Interface of a network: all that the rest of the package may ask of it.

Training, freezing, fine-tuning, sharding, checkpoints and reports work on any `torch.nn.Module` that has what
`DetectionModel` lists. A model that the package knows by name also has a class of settings and a `build`, and one line
in `models/__init__.py`; a module of your own goes straight to `train(model=...)`.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import Tensor, nn

from deformable_detr.core.errors import ConfigError
from deformable_detr.core.types import DetectorOutput, Target
from deformable_detr.models.losses import CriterionConfig, Losses

GIVEN = "given"
"""What a checkpoint and a config.json call a network that was given to `train` as a module."""


@runtime_checkable
class ModelConfig(Protocol):
    """Settings that shape a network: a frozen dataclass."""

    @property
    def num_classes(self) -> int:
        """Number of classes, which comes from the data."""
        ...

    @property
    def pretrained_parts(self) -> tuple[str, ...]:
        """Parts that start from learnt weights of their own, such as a backbone's."""
        ...

    @property
    def free_settings(self) -> frozenset[str]:
        """Settings on which no tensor depends, so that they may differ from those that weights were trained with."""
        ...

    @property
    def downloads(self) -> str:
        """What building it fetches over a network, in words for people; empty if nothing."""
        ...

    def describe(self) -> str:
        """Words for people, such as "two_stage, backbone resnet50 (weights: hub)"."""
        ...

    def with_classes(self, num_classes: int) -> "ModelConfig":
        """Settings for another number of classes."""
        ...

    def portable(self) -> "ModelConfig":
        """Settings as a checkpoint may carry them to another machine: no path in them."""
        ...


class ClassRows(NamedTuple):
    """Tensors with rows that mean something of their own, by the starts of their names."""

    by_class: tuple[str, ...] = ()
    """Row i belongs to class i: fine-tuning keeps those of classes that go on, and starts the others fresh."""
    by_channel: tuple[str, ...] = ()
    """As many rows as classes, but row i means the same whatever the classes are."""


@runtime_checkable
class CriterionLike(Protocol):
    """Loss of a network's output, differentiable; a `torch.nn.Module`."""

    def __call__(self, output: DetectorOutput, targets: list[Target], *, num_boxes: float | None = None) -> Losses:
        """Losses of a batch. Sums are divided by `num_boxes`, the objects of the whole step."""
        ...


@runtime_checkable
class DetectionModel(Protocol):
    """What a network offers to the rest of the package, besides being a `torch.nn.Module`."""

    @property
    def num_classes(self) -> int:
        """Channels of the class heads."""
        ...

    @property
    def parts(self) -> Mapping[str, tuple[str, ...]]:
        """Named parts, for freezing and learning rates, by the starts of their parameters' names.

        A parameter is in the first part that fits. The names "backbone", "encoder", "decoder" and "heads" have
        learning-rate factors of their own in `OptimizerConfig`.
        """
        ...

    @property
    def offsets(self) -> tuple[str, ...]:
        """Words in the names of parameters that learn at `offsets_lr_factor`: offsets and reference points (A.2)."""
        ...

    @property
    def class_rows(self) -> ClassRows:
        """Which rows of which tensors belong to classes."""
        ...

    def __call__(self, images: Tensor, padding_mask: Tensor, targets: list[Target] | None = None) -> DetectorOutput:
        """Predictions of every layer.

        Args:
            images: (batch, 3, height, width), normalised, padded at the right and bottom.
            padding_mask: (batch, height, width), True = padding.
            targets: what is there to be found, in training only, for networks that learn from noisy copies of it.
        """
        ...

    def layers(self) -> Sequence[nn.Module]:
        """Layers of about equal cost, each called once in a forward pass: compiled and recomputed one by one."""
        ...

    def gathered_together(self) -> Sequence[nn.Module]:
        """Modules whose weights are whole at the same time in sharded training, from the inside out."""
        ...

    def make_criterion(self, settings: CriterionConfig) -> CriterionLike:
        """Loss that it is trained with."""
        ...


def interface_of(model: nn.Module) -> DetectionModel:
    """The network as the rest of the package sees it.

    Raises:
        ConfigError: lists what it lacks.
    """
    if isinstance(model, DetectionModel):
        return model
    wanted = [name for name in vars(DetectionModel) if not name.startswith("_")]
    missing = [name for name in wanted if not hasattr(model, name)]
    raise ConfigError(
        f"{type(model).__name__} cannot be trained as it is: it lacks {', '.join(missing)}; "
        "deformable_detr.models.interface.DetectionModel says what each of them is"
    )


class ModelKind(NamedTuple):
    """A model that the package knows by name."""

    config_class: type[Any]
    """A frozen dataclass that is a `ModelConfig`."""
    model_class: type[nn.Module]
    """What `build` returns; its `parts` and `class_rows` can be read from the class."""
    build: Callable[..., nn.Module]
    """`build(config, load_backbone_weights=True)`; False where a checkpoint will bring all weights anyway."""


@dataclass(frozen=True, kw_only=True)
class GivenModelConfig:
    """Settings of a network that was given as a module: which class it is of, and no more."""

    class_name: str = ""
    """Module and name of the class."""
    num_classes: int = 1

    @property
    def pretrained_parts(self) -> tuple[str, ...]:
        """None that anything is known of."""
        return ()

    @property
    def free_settings(self) -> frozenset[str]:
        """None."""
        return frozenset()

    @property
    def downloads(self) -> str:
        """Nothing."""
        return ""

    def describe(self) -> str:
        """Its class."""
        return f"the module {self.class_name}"

    def with_classes(self, num_classes: int) -> "GivenModelConfig":
        """Settings of a module that was built for so many."""
        return replace(self, num_classes=num_classes)

    def portable(self) -> "GivenModelConfig":
        """As it is."""
        return self


def given_config(model: nn.Module) -> GivenModelConfig:
    """Settings of a network of one's own.

    Raises:
        ConfigError: it is not a `DetectionModel`; says what it lacks.
    """
    return GivenModelConfig(class_name=class_name_of(model), num_classes=interface_of(model).num_classes)


def class_name_of(model: nn.Module) -> str:
    """Module and name of a network's class, such as "my_package.nets.Dense"."""
    kind = type(model)
    return f"{kind.__module__}.{kind.__qualname__}"


class Models(dict[str, ModelKind]):
    """Models by name."""

    def config_classes(self) -> dict[str, type[Any]]:
        """Classes of settings by the model's name, that of modules of one's own included."""
        return {name: kind.config_class for name, kind in self.items()} | {GIVEN: GivenModelConfig}

    def name_of(self, config: ModelConfig) -> str:
        """Name of the model that these settings are of."""
        return next(name for name, kind in self.config_classes().items() if type(config) is kind)

    def build(self, config: ModelConfig, *, load_backbone_weights: bool = True) -> nn.Module:
        """Network of a config.

        Raises:
            ConfigError: it cannot be built, or is a module of somebody's own.
            CheckpointError: weights it starts from cannot be had.
        """
        if isinstance(config, GivenModelConfig):
            raise ConfigError(
                f"{config.class_name} is a class of somebody's own: build it yourself and hand it over with model=..."
            )
        return self[self.name_of(config)].build(config, load_backbone_weights=load_backbone_weights)

    def class_rows(self, config: ModelConfig) -> ClassRows:
        """Class rows of the network of a config; none of what is not known here."""
        return self._of_class(config, "class_rows", ClassRows())

    def parts(self, config: ModelConfig) -> Mapping[str, tuple[str, ...]]:
        """Parts of the network of a config; none of what is not known here."""
        return self._of_class(config, "parts", {})

    def _of_class(self, config: ModelConfig, attribute: str, unknown: Any) -> Any:
        kind = self.get(self.name_of(config))
        return unknown if kind is None else inspect.getattr_static(kind.model_class, attribute)
