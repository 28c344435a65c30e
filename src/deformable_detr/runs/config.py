"""Settings of a training run, in groups. A recipe is a function that returns them; config.json holds those of a run."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, is_dataclass, replace
from typing import Any, Literal, NamedTuple, TypeVar

from deformable_detr.core.config import named_settings, updated
from deformable_detr.core.errors import ConfigError
from deformable_detr.data.augmentation.settings import Augmentation
from deformable_detr.data.preprocessing import Preprocessing
from deformable_detr.evaluation.coco_metrics import check_metric_name
from deformable_detr.models import MODELS, DeformableDETRConfig, ModelConfig
from deformable_detr.models.losses import CriterionConfig
from deformable_detr.runs.bounds import check_counts

PrecisionName = Literal["auto", "float32", "bfloat16", "float16"]
ProductsName = Literal["auto", "pytorch", "onednn"]
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
    """Settings of reading the images. The result does not depend on `num_workers` and `image_cache_gb`."""

    val_share: float = 0.1
    """Share of the training images held out as validation images if there is no validation split; above 0, below 1."""
    skip_bad_images: bool = False
    """Whether images that are missing or cannot be read are left out and counted, instead of ending the run."""
    num_workers: int = 2
    """Number of processes that read images; 0 reads them in the training process."""
    image_cache_gb: float = 0.5
    """Memory for decoded training images, in GB, for all workers together; 0 = no cache."""

    def __post_init__(self) -> None:
        check_counts(self, "data", 0, "num_workers")
        if not 0 <= self.image_cache_gb < math.inf:
            raise ConfigError(f"data.image_cache_gb is {self.image_cache_gb}; it must be a number of GB, at least 0")
        if not 0 < self.val_share < 1:
            raise ConfigError(f"data.val_share is {self.val_share}; it must be between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Settings of AdamW and of the averaged weights (EMA). Except for averaging, the defaults are the paper's (A.2)."""

    lr: float | Literal["auto"] = "auto"
    """Peak learning rate, used exactly as given. The factors below multiply it for some parts. "auto" is `base_lr` x
    sqrt(batch size / `base_batch_size`)."""
    base_lr: float = 2e-4
    """Learning rate for steps of `base_batch_size` images; used if `lr` is "auto"."""
    base_batch_size: int = 32
    """Images per step that `base_lr` belongs to; used if `lr` is "auto"."""
    backbone_lr_factor: float = 0.1
    """Factor on the learning rate for the backbone."""
    offsets_lr_factor: float = 0.1
    """Factor for sampling offsets and reference points, on top of the factor of the part that they are in."""
    encoder_lr_factor: float = 1.0
    """Factor for the encoder's layers."""
    decoder_lr_factor: float = 1.0
    """Factor for the decoder's layers."""
    heads_lr_factor: float = 1.0
    """Factor for the class and box heads, in the decoder and in the first stage."""
    weight_decay: float = 1e-4
    """Weight decay on all parameters."""
    clip_norm: float = 0.1
    """Largest 2-norm of all gradients together; 0 = no clipping."""
    ema_decay: float | Literal["auto"] = 0.9997
    """Decay of the averaged weights, which are evaluated and kept for use, below 1; 0 = no averaging. See `EMA`.
    "auto": by the length of the run, see `fitted_decay`."""

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
        check_counts(self, "optimizer", 1, "base_batch_size")
        if self.ema_decay != "auto" and not 0 <= self.ema_decay < 1:
            raise ConfigError(f"optimizer.ema_decay is {self.ema_decay}; it must be at least 0 and below 1, or 'auto'")


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Settings of the length of a run and of its learning rate schedule."""

    epochs: int | Literal["auto"] = 50
    """Number of times that every training image is seen. "auto": by the number of images, see `fitted_epochs`."""
    warmup_steps: int | Literal["auto"] = 0
    """Steps over which the learning rate rises linearly from nearly 0. "auto": see `fitted_warmup`."""
    shape: Literal["step", "cosine", "flat_cosine"] = "step"
    """Course of the learning rate after the warm-up. "step": constant, then a tenth from `drop_at` on, as in the paper.
    "cosine": down to `final_factor` along half a cosine. "flat_cosine": constant, then such a cosine from `drop_at`
    on."""
    drop_at: float = 0.8
    """Share of all steps after which the learning rate falls (in the paper after 40 of 50 epochs), up to 1 = never."""
    final_factor: float = 0.01
    """Share of the learning rate at the last step of a cosine, 0..1."""

    def __post_init__(self) -> None:
        """Refuse values no run could mean."""
        check_counts(self, "schedule", 1, "epochs")
        check_counts(self, "schedule", 0, "warmup_steps")
        if not 0 < self.drop_at <= 1:
            raise ConfigError(f"schedule.drop_at is {self.drop_at}; it must be above 0 and at most 1")
        if not 0 <= self.final_factor <= 1:
            raise ConfigError(f"schedule.final_factor is {self.final_factor}; it must be in 0..1")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Settings of the start of a run, its steps, and how often it is evaluated and logged."""

    seed: int = 0
    """Seed of all random numbers, at least 0 and below 2 to the power of 63."""
    batch_size: int | Literal["auto"] = 32
    """Images per step. "auto": as many as fit into memory, see `fitting_batch`."""
    start: Literal["backbone", "weights"] = "backbone"
    """Pretrained weights that the run starts from. "backbone": those of the backbone, or none. "weights": those of a
    whole detector, which `train` must be given as `weights`; they replace the structure that `model` describes."""
    fit_queries: bool = False
    """Whether the model gets more queries than `model.num_queries` if training images hold many objects, see
    `fitted_queries`. False once somebody sets that number, and in config.json, which has the number in force."""
    freeze: tuple[str, ...] = ()
    """Parts of the network that keep their weights, by their names in `parts`. "all_but_heads" names all but the
    heads."""
    eval_every: int | Literal["auto"] = 1
    """Epochs between evaluations; the last epoch is always evaluated. "auto": see `fitted_interval`."""
    log_every: int = 10
    """Steps between records in metrics.jsonl."""

    def __post_init__(self) -> None:
        """Refuse values no run could mean."""
        check_counts(self, "run", 1, "batch_size", "eval_every", "log_every")
        check_counts(self, "run", 0, "seed")


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """Settings of precision, memory and speed. Except for `precision`, they do not change the result of a step."""

    precision: PrecisionName = "auto"
    """Number format of the forward pass, see `Precision`. "auto": half precision on GPUs, float32 on CPUs."""
    accumulate: int = 1
    """Number of parts that the images of a step are cut into; more parts need less memory and more time."""
    activation_checkpointing: bool = False
    """Whether activations inside layers are recomputed in the backward pass, not stored: less memory, more time."""
    compile: bool = False
    """Whether encoder and decoder layers are compiled with torch.compile. It is for GPUs; on a CPU it gains nothing."""
    sharded: bool = False
    """Whether each of several processes keeps only a part of weights, gradients, moments and averages (FSDP)."""

    products: ProductsName = "auto"
    """Library for matrix products on a CPU: PyTorch's choice or oneDNN. "auto": oneDNN if faster and as exact here."""

    def __post_init__(self) -> None:
        """Refuse values no run could mean."""
        check_counts(self, "compute", 1, "accumulate")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Settings of the checkpoints: which are kept, and when they are saved."""

    best_by: str = "ap"
    """Metric that selects best.safetensors: one of COCO's twelve, such as "ap50", or of a class, such as "cat/ap".
    With "@queries" behind it, not COCO's, but with as many detections of an image as the model has queries."""
    save_every: float = 10.0
    """Minutes between two saves of last.safetensors within an epoch; 0 = saved only at the end of an epoch."""
    keep_last: int = 2
    """Number of checkpoints to resume from that are kept: last.safetensors and those before it."""

    def __post_init__(self) -> None:
        """Refuse values no run could mean."""
        check_counts(self, "checkpoints", 1, "keep_last")
        if not 0 <= self.save_every < math.inf:
            raise ConfigError(
                f"checkpoints.save_every is {self.save_every}; it must be a number of minutes, at least 0"
            )
        check_metric_name(self.best_by)


@dataclass(frozen=True, kw_only=True)
class StoppingConfig:
    """Settings of early stopping."""

    patience: int = 0
    """Evaluations in a row without a better `checkpoints.best_by` after which the run ends; 0 = it never ends early."""
    on_non_finite: Literal["stop", "skip"] = "stop"
    """Reaction to a step whose loss or gradient is not finite: "stop" ends the run, "skip" leaves the step out. Ten
    steps in a row that are left out end the run, too."""

    def __post_init__(self) -> None:
        """Refuse values no run could mean."""
        check_counts(self, "stopping", 0, "patience")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """All settings of a training run. The defaults are the paper's base model on COCO."""

    name: str = "custom"
    """Name of the recipe; part of the name of the run folder."""
    data: DataConfig = field(default_factory=DataConfig)
    """Settings of reading the images."""
    preprocessing: Preprocessing | Literal["auto", "weights"] = field(
        default_factory=Preprocessing, metadata={"instead": "use --image-size N first"}
    )
    """Preprocessing of the images. "auto": an image size that fits the objects in the training data, see `fitted_size`.
    "weights": the preprocessing of the weights that the run starts from."""
    augmentation: Augmentation | Literal["auto"] = field(
        default_factory=Augmentation, metadata={"instead": "begin with a preset, --augment NAME"}
    )
    """Augmentation of the training images. "auto": that of the paper, but without mirroring if there are classes such
    as "left hand", see `handed_classes`."""
    model: ModelConfig = field(default_factory=DeformableDETRConfig, metadata={"kinds": MODELS.config_classes})
    """Settings of the network; "name" says which one. `num_classes` is always taken from the data."""
    criterion: CriterionConfig = field(default_factory=CriterionConfig)
    """Settings of the loss."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Settings of AdamW and of the averaged weights."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """Settings of the length of the run and of its learning rate schedule."""
    run: RunConfig = field(default_factory=RunConfig)
    """Settings of the start, the steps, evaluation and logging."""
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    """Settings of precision, memory and speed."""
    checkpoints: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Settings of the checkpoints."""
    stopping: StoppingConfig = field(default_factory=StoppingConfig)
    """Settings of early stopping."""

    def __post_init__(self) -> None:
        """Refuse settings that contradict each other."""
        if self.preprocessing == "weights" and self.run.start != "weights":
            raise ConfigError(f"preprocessing is 'weights', but run.start is {self.run.start!r}; it needs 'weights'")
        batch_size, accumulate = self.run.batch_size, self.compute.accumulate
        if batch_size != "auto" and accumulate > batch_size:
            raise ConfigError(
                f"compute.accumulate is {accumulate} and run.batch_size {batch_size}; a part needs at least one image"
            )

    def with_settings(self, settings: Mapping[str, Any] | None = None, /, **more: Any) -> "TrainConfig":
        """Copy with some settings changed: `small().with_settings(epochs=12, model={"num_queries": 50})`.

        A number of queries that is named, or that a new `model` changes, stays: `run.fit_queries` is then False, unless
        it is named, too. `dataclasses.replace` leaves `run.fit_queries` as it is.

        Args:
            settings: new values by full names, such as {"schedule.epochs": 12}, or by the last part of a name if it is
                unique.
            more: more new values, by the last part of their names.

        Raises:
            ConfigError: there is no such setting, a value has the wrong type, or a setting would have no effect with
                the others as they are.
        """
        changes = {**(settings or {}), **more}
        changed, named = updated(self, changes), named_settings(self, changes)
        # A whole model gives a value to all of its settings; whoever changed another of them has not chosen this one.
        by_name = named_settings(self, {name: value for name, value in changes.items() if not is_dataclass(value)})
        before, after = (getattr(config.model, "num_queries", None) for config in (self, changed))
        if ("model.num_queries" in by_name or before != after) and "run.fit_queries" not in named:
            changed = replace(changed, run=replace(changed.run, fit_queries=False))
        refuse_idle(changed, changes)
        return changed


def settled(value: Setting | Literal["auto", "weights"]) -> Setting:
    """Value of a setting that is no longer "auto" or "weights", as after `fit_to_data`."""
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
    """Settings that have no effect with the others as they are: reasons by full names."""
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
    if MODELS.class_scores(config.model) == "softmax":
        note(
            "the model has a cross-entropy in place of the focal loss",
            "criterion",
            "class_loss",
            "focal_alpha",
            "focal_gamma",
        )
    if MODELS.class_scores(config.model) == "sigmoid":
        note("the model has no class for 'no object'", "criterion", "no_object_weight")
    if not hasattr(config.model, "num_queries"):
        note("the network is one of your own, whose queries nobody else can add to", "run", "fit_queries")
    if MODELS.offsets(config.model) == ():
        note("the model has no sampling offsets", "optimizer", "offsets_lr_factor")
    for part in ("backbone", "encoder", "decoder", "heads"):
        if part in config.run.freeze or (part != "heads" and "all_but_heads" in config.run.freeze):
            note(f"run.freeze holds the {part}", "optimizer", f"{part}_lr_factor")
            if part == "backbone" and config.run.start == "backbone" and hasattr(config.model, "deformable_stages"):
                note("run.freeze holds the backbone, whose convolutions stay plain", "model", "deformable_stages")
    if isinstance(augmentation, Augmentation):
        for probability, *names in _WITH_PROBABILITY:
            if getattr(augmentation, probability) == 0:
                note(f"augmentation.{probability} is 0", "augmentation", *names)
        if augmentation.mosaic == augmentation.mixup == 0:
            note("augmentation.mosaic and mixup are 0", "augmentation", "mixing_off")
        elif augmentation.mixing_off > 0 and augmentation.until + augmentation.mixing_off <= 1:
            note(f"augmentation.until is {augmentation.until}, which ends mixing before", "augmentation", "mixing_off")
        if augmentation == augmentation.plain():
            note("images are only flipped, turned and resized anyway", "augmentation", "until")
    return idle


_WITH_PROBABILITY = (
    ("crop_probability", "crop_short_sides", "crop_min", "crop_max"),
    ("zoom_out", "zoom_out_most"),
    ("mosaic", "mosaic_scale"),
)


def refuse_idle(config: TrainConfig, names: Mapping[str, Any]) -> None:
    """Refuse settings that somebody has just chosen and that have no effect.

    Args:
        config: all settings, with the chosen ones.
        names: full names of the chosen settings, or the last parts of their names.

    Raises:
        ConfigError: one has no effect; the message says which and why.
    """
    for full, why in idle_settings(config).items():
        if full in names or full.rsplit(".", 1)[-1] in names:
            raise ConfigError(f"{full} has no effect: {why}; leave it out, or change that")


def idle_remarks(config: TrainConfig) -> list[str]:
    """Remarks for people about settings that differ from their defaults and have no effect."""
    remarks = []
    for name, why in idle_settings(config).items():
        group, setting = name.split(".")
        if group == "optimizer":  # recipes set base_lr; a user who sets lr as well has made no mistake
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
