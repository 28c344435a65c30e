"""Settings of a training run."""

import math
from dataclasses import dataclass, field
from typing import Literal

from deformable_detr.core.errors import ConfigError
from deformable_detr.data.augmentation.settings import Augmentation
from deformable_detr.data.preprocessing import Preprocessing
from deformable_detr.evaluation.coco_metrics import check_metric_name
from deformable_detr.models import DeformableDETRConfig
from deformable_detr.models.losses import CriterionConfig

FREEZABLE = ("backbone", "projections", "encoder", "queries", "decoder", "heads", "all_but_heads")
"""What `freeze` may name; "all_but_heads" is the five before "heads" together."""


PrecisionName = Literal["auto", "float32", "bfloat16", "float16"]


_FACTORS = (
    "backbone_lr_factor",
    "offsets_lr_factor",
    "encoder_lr_factor",
    "decoder_lr_factor",
    "heads_lr_factor",
)


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
    """Likewise of sampling offsets and reference points; the factor of the part they are in counts, too."""
    encoder_lr_factor: float = 1.0
    decoder_lr_factor: float = 1.0
    """Of the decoder's layers."""
    heads_lr_factor: float = 1.0
    """Of what gives classes and boxes, in the decoder and in the first stage."""
    weight_decay: float = 1e-4
    clip_norm: float = 0.1
    """Largest 2-norm of all gradients together; 0 = no clipping."""
    warmup_steps: int | None = 0
    """Steps over which the learning rate rises linearly from nearly nothing. None: see `fitted_warmup`."""
    schedule: Literal["step", "cosine", "flat_cosine"] = "step"
    """How the learning rate goes on after the warm-up. "step": all of it, then a tenth from `drop_at` on, as in the
    paper. "cosine": down along half a cosine to `final_factor`. "flat_cosine": all of it, then so from `drop_at` on."""
    drop_at: float = 0.8
    """Share of all steps after which the learning rate falls, 40 of 50 epochs in the paper; 1 = never."""
    final_factor: float = 0.01
    """Share of the learning rate that is left at the last step of a cosine."""

    def __post_init__(self) -> None:
        """Refuse values no run could mean."""
        for name in ("lr", "weight_decay", "clip_norm", *_FACTORS):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"optimizer.{name} is {value}; it must be a number of at least 0")
        if self.lr == 0:
            raise ConfigError("optimizer.lr is 0; nothing would be learnt")
        if self.lr_batch_size is not None and self.lr_batch_size < 1:
            raise ConfigError(f"optimizer.lr_batch_size is {self.lr_batch_size}; it must be at least 1 or null")
        if self.warmup_steps is not None and self.warmup_steps < 0:
            raise ConfigError(f"optimizer.warmup_steps is {self.warmup_steps}; it must be at least 0")
        if not 0 < self.drop_at <= 1:
            raise ConfigError(f"optimizer.drop_at is {self.drop_at}; it must be above 0 and at most 1")
        if not 0 <= self.final_factor <= 1:
            raise ConfigError(f"optimizer.final_factor is {self.final_factor}; it must be in 0..1")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Every setting of a training run. The defaults are the paper's base model on COCO."""

    name: str = "custom"
    """Of the recipe; part of the default run folder's name."""
    model: DeformableDETRConfig = field(default_factory=DeformableDETRConfig)
    """`num_classes` is always taken from the data."""
    criterion: CriterionConfig = field(default_factory=CriterionConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    augmentation: Augmentation = field(default_factory=Augmentation)
    epochs: int | None = 50
    """None: as many as `fitted_epochs` finds right for the number of images."""
    batch_size: int = 32
    """Images per step. The learning rate follows it, see `OptimizerConfig.lr_batch_size`."""
    batch_size_by: Literal["settings", "memory"] = "settings"
    """What decides on the batch: `batch_size`, or `fitting_batch`, which asks the machine."""
    seed: int = 0
    num_workers: int = 2
    """Processes that read images; 0 reads them in the training process. Results do not depend on it."""
    image_cache_gb: float = 0.5
    """Memory for decoded training images, in GB, shared out among the workers. Results do not depend on it."""
    val_share: float = 0.1
    """Share of the training images held out for evaluation if the data set has no validation split."""
    eval_every: int | None = 1
    """Epochs between evaluations; the last epoch is always evaluated. None: see `fitted_interval`."""
    log_every: int = 10
    """Steps between lines in metrics.jsonl."""
    skip_bad_images: bool = False
    """Leave out, and count, images that are missing or cannot be read, instead of stopping."""
    start: Literal["backbone", "weights"] = "backbone"
    """What has learnt something before the first step: at most the backbone, or a whole detector, of which `train`
    must then be given the `weights`. They bring the network's structure, whatever `model` says."""
    size_by: Literal["settings", "objects", "weights"] = "settings"
    """What decides on the size of images: `preprocessing` and `augmentation` as they are, the objects in the training
    data as `fitted_size` says, or the weights, which go on at their own. `with_image_size` ends the latter two."""
    augmentation_by: Literal["settings", "data"] = "settings"
    """What decides on the augmentation: `augmentation` as it is, or the training data: then it is the paper's, without
    mirror images if that would make classes wrong, see `handed_classes`. `with_augmentation` ends the latter."""
    freeze: tuple[str, ...] = ()
    """Parts of the network, of `FREEZABLE`, that keep their weights, besides `model.frozen_stages`."""
    accumulate: int = 1
    """Parts in which the images of a step go through the network, one after the other: less memory, the same step."""
    activation_checkpointing: bool = False
    """Compute what is inside the layers twice instead of remembering it: less memory, more time, the same step."""
    compile: bool = False
    """Compile the layers of encoder and decoder with torch.compile, for GPUs; on a processor it gains nothing."""
    precision: PrecisionName = "auto"
    """What the network computes with, see `Precision`: "auto" is half precision on GPUs and float32 elsewhere."""
    sharded: bool = False
    """With several processes, leave each a part of weights, gradients, moments and average instead of all of them."""
    ema_decay: float = 0.9997
    """Of the averaged weights, which are evaluated and kept for use, see `Average`; 0 = no averaging."""
    best_by: str = "ap"
    """Which metric decides on best.safetensors: one of COCO's twelve, such as "ap50", or a class's own, "cat/ap"."""
    patience: int = 0
    """Epochs without a better `best_by` after which the run ends; 0 = it never ends early."""
    save_every: float = 10.0
    """Minutes after which last.safetensors is written within an epoch, too; 0 = between epochs only."""
    keep_last: int = 2
    """Checkpoints to go on from that are kept: last.safetensors and those before it."""
    on_non_finite: Literal["stop", "skip"] = "stop"
    """What becomes of a step whose loss or gradient is not finite; ten left out in a row stop the run all the same."""

    def __post_init__(self) -> None:
        """Refuse values no run could mean."""
        for name in ("epochs", "batch_size", "eval_every", "log_every", "accumulate", "keep_last"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; it must be at least 1")
        for name in ("num_workers", "seed", "patience"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 0")
        if not 0 <= self.image_cache_gb < math.inf:
            raise ConfigError(f"image_cache_gb is {self.image_cache_gb}; it must be a number of GB, at least 0")
        if not 0 < self.val_share < 1:
            raise ConfigError(f"val_share is {self.val_share}; it must be between 0 and 1")
        if self.size_by == "weights" and self.start != "weights":
            raise ConfigError(f"size_by is 'weights', but start is {self.start!r}; it needs 'weights'")
        _check_left_open(self)
        unknown = [name for name in self.freeze if name not in FREEZABLE]
        if unknown:
            raise ConfigError(f"freeze holds {unknown[0]!r}; there are {', '.join(FREEZABLE)}")
        if self.accumulate > self.batch_size:
            raise ConfigError(
                f"accumulate is {self.accumulate} and batch_size {self.batch_size}; a part needs at least one image"
            )
        if not 0 <= self.ema_decay < 1:
            raise ConfigError(f"ema_decay is {self.ema_decay}; it must be at least 0 and below 1")
        if not 0 <= self.save_every < math.inf:
            raise ConfigError(f"save_every is {self.save_every}; it must be a number of minutes, at least 0")
        check_metric_name(self.best_by)


def _check_left_open(config: TrainConfig) -> None:
    """Refuse settings that would be overwritten without a word."""
    if config.size_by != "settings":
        ours, default = config.preprocessing, Preprocessing()
        for name in ("short_side", "max_side"):
            value = getattr(ours, name)
            if value != getattr(default, name):
                raise ConfigError(
                    f"preprocessing.{name} is {value}, but size_by is {config.size_by!r}, which decides on it; "
                    "use --image-size, or size_by=settings"
                )
    if config.augmentation_by == "data" and config.augmentation != Augmentation():
        raise ConfigError(
            "augmentation is set, but augmentation_by is 'data', which decides on it; "
            "begin with a preset, --augment NAME, or use augmentation_by=settings"
        )
