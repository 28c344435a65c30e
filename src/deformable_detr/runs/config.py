"""Settings of a training run, in groups; a recipe is a function that returns them, a run's config.json holds them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeVar

from deformable_detr.core.config import from_dict, to_dict, updated
from deformable_detr.core.errors import ConfigError
from deformable_detr.data.augmentation.settings import Augmentation
from deformable_detr.data.preprocessing import Preprocessing
from deformable_detr.evaluation.coco_metrics import check_metric_name
from deformable_detr.models import MODELS, DeformableDETRConfig, ModelConfig
from deformable_detr.models.losses import CriterionConfig
from deformable_detr.runs.version_1 import from_version_1, is_version_1

SCHEMA_VERSION = 2
"""Of config.json. Version 1 had most settings side by side, and said neither its version nor the model's name."""
PrecisionName = Literal["auto", "float32", "bfloat16", "float16"]
_FACTORS = (
    "backbone_lr_factor",
    "offsets_lr_factor",
    "encoder_lr_factor",
    "decoder_lr_factor",
    "heads_lr_factor",
)
Setting = TypeVar("Setting")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Settings of reading the images. No result depends on `num_workers` and `image_cache_gb`."""

    val_share: float = 0.1
    """Share of the training images held out for evaluation if the data set has no validation split."""
    skip_bad_images: bool = False
    """Leave out, and count, images that are missing or cannot be read, instead of stopping."""
    num_workers: int = 2
    """Processes that read images; 0 reads them in the training process."""
    image_cache_gb: float = 0.5
    """Memory for decoded training images, in GB, shared out among the workers."""

    def __post_init__(self) -> None:
        _at_least(self, "data", 0, "num_workers")
        if not 0 <= self.image_cache_gb < math.inf:
            raise ConfigError(f"data.image_cache_gb is {self.image_cache_gb}; it must be a number of GB, at least 0")
        if not 0 < self.val_share < 1:
            raise ConfigError(f"data.val_share is {self.val_share}; it must be between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Settings of AdamW and of the averaged weights (EMA). The defaults are the paper's (A.2) but for averaging."""

    lr: float | Literal["auto"] = "auto"
    """Learning rate of everything but the backbone and the sampling offsets, used exactly as given. "auto" is
    `base_lr` x sqrt(batch size / `base_batch_size`)."""
    base_lr: float = 2e-4
    """Learning rate for steps of `base_batch_size` images, for `lr` "auto"."""
    base_batch_size: int = 32
    backbone_lr_factor: float = 0.1
    """Learning rate of the backbone, as a share of the others'."""
    offsets_lr_factor: float = 0.1
    """Share for sampling offsets and reference points; the factor of the part they are in counts, too."""
    encoder_lr_factor: float = 1.0
    decoder_lr_factor: float = 1.0
    """Share for the decoder's layers."""
    heads_lr_factor: float = 1.0
    """Share for the class and box heads, in the decoder and in the first stage."""
    weight_decay: float = 1e-4
    clip_norm: float = 0.1
    """Largest 2-norm of all gradients together; 0 = no clipping."""
    ema_decay: float = 0.9997
    """Decay of the averaged weights, which are evaluated and kept for use, see `EMA`; 0 = no averaging."""

    def __post_init__(self) -> None:
        """Refuse values no run could mean."""
        for name in ("base_lr", "weight_decay", "clip_norm", *_FACTORS):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"optimizer.{name} is {value}; it must be a number of at least 0")
        if self.lr != "auto" and not (math.isfinite(self.lr) and self.lr >= 0):
            raise ConfigError(f"optimizer.lr is {self.lr}; it must be a number of at least 0, or 'auto'")
        for name in ("lr", "base_lr"):
            if getattr(self, name) == 0:
                raise ConfigError(f"optimizer.{name} is 0; nothing would be learnt")
        _at_least(self, "optimizer", 1, "base_batch_size")
        if not 0 <= self.ema_decay < 1:
            raise ConfigError(f"optimizer.ema_decay is {self.ema_decay}; it must be at least 0 and below 1")


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Settings of how long a run trains, and how the learning rate changes on the way."""

    epochs: int | Literal["auto"] = 50
    """Times every training image is seen. "auto": as many as `fitted_epochs` finds right for the number of images."""
    warmup_steps: int | Literal["auto"] = 0
    """Steps over which the learning rate rises linearly from nearly nothing. "auto": see `fitted_warmup`."""
    shape: Literal["step", "cosine", "flat_cosine"] = "step"
    """How the learning rate goes on after the warm-up. "step": all of it, then a tenth from `drop_at` on, as in the
    paper. "cosine": down along half a cosine to `final_factor`. "flat_cosine": all of it, then so from `drop_at` on."""
    drop_at: float = 0.8
    """Share of all steps after which the learning rate falls, 40 of 50 epochs in the paper; 1 = never."""
    final_factor: float = 0.01
    """Share of the learning rate that is left at the last step of a cosine."""

    def __post_init__(self) -> None:
        """Refuse values no run could mean."""
        _at_least(self, "schedule", 1, "epochs")
        _at_least(self, "schedule", 0, "warmup_steps")
        if not 0 < self.drop_at <= 1:
            raise ConfigError(f"schedule.drop_at is {self.drop_at}; it must be above 0 and at most 1")
        if not 0 <= self.final_factor <= 1:
            raise ConfigError(f"schedule.final_factor is {self.final_factor}; it must be in 0..1")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Settings of a run's beginning, its steps, and how often it is evaluated and logged."""

    seed: int = 0
    batch_size: int | Literal["auto"] = 32
    """Images per step. "auto": as many as memory takes, see `fitting_batch`."""
    start: Literal["backbone", "weights"] = "backbone"
    """What has learnt something before the first step: at most the backbone, or a whole detector, of which `train`
    must then be given the `weights`. They bring the network's structure, whatever `model` says."""
    freeze: tuple[str, ...] = ()
    """Parts of the network that keep their weights, by the names its `parts` have; "all_but_heads" is all but these."""
    eval_every: int | Literal["auto"] = 1
    """Epochs between evaluations; the last epoch is always evaluated. "auto": see `fitted_interval`."""
    log_every: int = 10
    """Steps between lines in metrics.jsonl."""

    def __post_init__(self) -> None:
        """Refuse values no run could mean."""
        _at_least(self, "run", 1, "batch_size", "eval_every", "log_every")
        _at_least(self, "run", 0, "seed")


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """Settings of precision and memory. But for `precision`, a step does the same whatever they are."""

    precision: PrecisionName = "auto"
    """What the network computes with, see `Precision`: "auto" is half precision on GPUs and float32 on CPUs."""
    accumulate: int = 1
    """Parts in which the images of a step go through the network, one after the other: less memory, more time."""
    activation_checkpointing: bool = False
    """Compute what is inside the layers twice instead of remembering it: less memory, more time."""
    compile: bool = False
    """Compile the layers of encoder and decoder with torch.compile, for GPUs; on a CPU it gains nothing."""
    sharded: bool = False
    """With several processes, leave each a part of weights, gradients, moments and average instead of all of them."""

    def __post_init__(self) -> None:
        """Refuse values no run could mean."""
        _at_least(self, "compute", 1, "accumulate")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Settings of what is saved, and when."""

    best_by: str = "ap"
    """Metric that decides on best.safetensors: one of COCO's twelve, such as "ap50", or a class's own, "cat/ap"."""
    save_every: float = 10.0
    """Minutes after which last.safetensors is written within an epoch, too; 0 = between epochs only."""
    keep_last: int = 2
    """Checkpoints to go on from that are kept: last.safetensors and those before it."""

    def __post_init__(self) -> None:
        """Refuse values no run could mean."""
        _at_least(self, "checkpoints", 1, "keep_last")
        if not 0 <= self.save_every < math.inf:
            raise ConfigError(
                f"checkpoints.save_every is {self.save_every}; it must be a number of minutes, at least 0"
            )
        check_metric_name(self.best_by)


@dataclass(frozen=True, kw_only=True)
class StoppingConfig:
    """Settings of what ends a run before its last epoch."""

    patience: int = 0
    """Evaluations in a row without a better `checkpoints.best_by` after which the run ends; 0 = it never ends early."""
    on_non_finite: Literal["stop", "skip"] = "stop"
    """What becomes of a step whose loss or gradient is not finite; ten left out in a row stop the run all the same."""

    def __post_init__(self) -> None:
        """Refuse values no run could mean."""
        _at_least(self, "stopping", 0, "patience")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Every setting of a training run. The defaults are the paper's base model on COCO."""

    name: str = "custom"
    """Name of the recipe; part of the default run folder's name."""
    data: DataConfig = field(default_factory=DataConfig)
    preprocessing: Preprocessing | Literal["auto", "weights"] = field(
        default_factory=Preprocessing, metadata={"instead": "use --image-size N first"}
    )
    """How an image becomes the network's input. "auto": images of the size that the objects in the training data
    need, see `fitted_size`. "weights": as the weights that the run starts from had it."""
    augmentation: Augmentation | Literal["auto"] = field(
        default_factory=Augmentation, metadata={"instead": "begin with a preset, --augment NAME"}
    )
    """How training images are varied. "auto": the paper's way, without mirror images where these would make classes
    wrong, see `handed_classes`."""
    model: ModelConfig = field(default_factory=DeformableDETRConfig, metadata={"kinds": MODELS.config_classes})
    """Settings of the network; "name" says which one. `num_classes` is always taken from the data."""
    criterion: CriterionConfig = field(default_factory=CriterionConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    run: RunConfig = field(default_factory=RunConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    checkpoints: CheckpointConfig = field(default_factory=CheckpointConfig)
    stopping: StoppingConfig = field(default_factory=StoppingConfig)

    def __post_init__(self) -> None:
        """Refuse settings that cannot go together."""
        if self.preprocessing == "weights" and self.run.start != "weights":
            raise ConfigError(f"preprocessing is 'weights', but run.start is {self.run.start!r}; it needs 'weights'")
        batch_size, accumulate = self.run.batch_size, self.compute.accumulate
        if batch_size != "auto" and accumulate > batch_size:
            raise ConfigError(
                f"compute.accumulate is {accumulate} and run.batch_size {batch_size}; a part needs at least one image"
            )

    def with_settings(self, settings: Mapping[str, Any] | None = None, /, **more: Any) -> "TrainConfig":
        """Copy with some settings changed: `small().with_settings(epochs=12, model={"num_queries": 50})`.

        Args:
            settings: by their full names, such as {"schedule.epochs": 12}, or by the last part of a name that only
                one setting has.
            more: further ones, by the last part of their names.

        Raises:
            ConfigError: no such setting, a value of the wrong type, or a setting that has no effect beside the others.
        """
        changes = {**(settings or {}), **more}
        changed = updated(self, changes)
        refuse_idle(changed, changes)
        return changed


def settled(value: Setting | Literal["auto", "weights"]) -> Setting:
    """Value of a setting that nothing leaves open any more, as it is once `fit_to_data` has looked at the data."""
    assert not isinstance(value, str), f"{value!r} has not been settled"
    return value


class Plan(NamedTuple):
    """Settings that were perhaps left to the data, settled."""

    preprocessing: Preprocessing
    augmentation: Augmentation
    batch_size: int
    """Images per step."""
    epochs: int
    """Epochs of the whole run."""
    eval_every: int
    """Epochs between evaluations."""


def plan_of(config: TrainConfig) -> Plan:
    """Plan of a run whose config already fits its data."""
    return Plan(
        preprocessing=settled(config.preprocessing),
        augmentation=settled(config.augmentation),
        batch_size=settled(config.run.batch_size),
        epochs=settled(config.schedule.epochs),
        eval_every=settled(config.run.eval_every),
    )


def idle_settings(config: TrainConfig) -> dict[str, str]:
    """Settings that have no effect beside the others, by their full names, and why."""
    idle: dict[str, str] = {}

    def note(why: str, group: str, *names: str) -> None:
        idle.update({f"{group}.{name}": why for name in names})

    schedule, augmentation = config.schedule, config.augmentation
    if schedule.shape == "cosine":
        note("schedule.shape is 'cosine', which falls from the warm-up on", "schedule", "drop_at")
    if schedule.shape == "step":
        note("schedule.shape is 'step', which falls to a tenth", "schedule", "final_factor")
    if config.optimizer.lr != "auto":
        note(f"optimizer.lr is {config.optimizer.lr}, used as it is", "optimizer", "base_lr", "base_batch_size")
    for part, factor in (("backbone", "backbone"), ("encoder", "encoder"), ("decoder", "decoder"), ("heads", "heads")):
        if part in config.run.freeze or (part != "heads" and "all_but_heads" in config.run.freeze):
            note(f"run.freeze holds the {part}", "optimizer", f"{factor}_lr_factor")
    if isinstance(augmentation, Augmentation):
        for probability, *names in _WITH_PROBABILITY:
            if getattr(augmentation, probability) == 0:
                note(f"augmentation.{probability} is 0", "augmentation", *names)
        if augmentation.mosaic == augmentation.mixup == 0:
            note("augmentation.mosaic and mixup are 0", "augmentation", "mixing_off")
    return idle


_WITH_PROBABILITY = (
    ("crop_probability", "crop_short_sides", "crop_min", "crop_max"),
    ("zoom_out", "zoom_out_most"),
    ("mosaic", "mosaic_scale"),
)


def refuse_idle(config: TrainConfig, names: Mapping[str, Any]) -> None:
    """Refuse settings that somebody has just chosen and that have no effect.

    Args:
        config: with those settings.
        names: their names, full or by their last part.

    Raises:
        ConfigError: names the first of them, and why it has none.
    """
    for full, why in idle_settings(config).items():
        if full in names or full.rsplit(".", 1)[-1] in names:
            raise ConfigError(f"{full} has no effect: {why}; leave it out, or change that")


def idle_remarks(config: TrainConfig) -> list[str]:
    """Lines for people about settings that differ from their defaults and have no effect."""
    remarks = []
    for name, why in idle_settings(config).items():
        group, setting = name.split(".")
        if group == "optimizer":  # a recipe's own base_lr is no mistake of who gives lr
            continue
        own = getattr(config, group)
        value, default = getattr(own, setting), type(own).__dataclass_fields__[setting].default
        if setting in _LENGTHS:  # they follow the size of the images, as in `Augmentation.scaled`
            ratio = max(own.short_sides) / max(type(own).__dataclass_fields__["short_sides"].default)
            lengths = default if isinstance(default, tuple) else (default,)
            scaled = tuple(sorted({max(1, round(length * ratio)) for length in lengths}))
            default = scaled if isinstance(default, tuple) else scaled[0]
        if value != default:
            remarks.append(f"{name} is {value} and has no effect: {why}")
    return remarks


_LENGTHS = ("crop_short_sides", "crop_min", "crop_max")


def _at_least(group: object, title: str, least: int, *names: str) -> None:
    for name in names:
        value = getattr(group, name)
        if value != "auto" and value < least:
            raise ConfigError(f"{title}.{name} is {value}; it must be at least {least}")


def to_json(config: TrainConfig) -> dict[str, Any]:
    """Settings as config.json holds them."""
    return {"schema_version": SCHEMA_VERSION, **to_dict(config)}


def from_json(data: Mapping[str, Any], source: str) -> TrainConfig:
    """Settings that a config.json holds, or one of an earlier version; `source` is for messages.

    Raises:
        ConfigError: a setting that does not exist or has the wrong type, or a file of a newer version.
    """
    data = dict(data)
    version = data.pop("schema_version", 1 if is_version_1(data) else SCHEMA_VERSION)
    if version == 1:
        return from_dict(TrainConfig, from_version_1(data))
    if version != SCHEMA_VERSION:
        raise ConfigError(
            f"{source} has schema version {version!r}, this version of deformable-detr reads up to {SCHEMA_VERSION}"
        )
    return from_dict(TrainConfig, data)
