"""Recipes: functions that return the settings of a run. Each names its command, its cost and the AP to expect."""

import difflib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from deformable_detr.core.errors import ConfigError
from deformable_detr.core.reading import read_json
from deformable_detr.data.augmentation.presets import find_preset
from deformable_detr.data.augmentation.settings import LARGEST_SIDE, Augmentation
from deformable_detr.data.preprocessing import Preprocessing
from deformable_detr.models import DeformableDETRConfig, DETRConfig
from deformable_detr.runs.config import OptimizerConfig, RunConfig, ScheduleConfig, TrainConfig
from deformable_detr.runs.config_file import from_json
from deformable_detr.runs.dino_recipes import dino_r50, dino_r50_5scale, dino_r50_improved, dino_small

__all__ = [
    "RECIPES",
    "demo",
    "detr_r50",
    "detr_r50_dc5",
    "detr_small",
    "dino_r50",
    "dino_r50_5scale",
    "dino_r50_improved",
    "dino_small",
    "find_recipe",
    "finetune",
    "paper_r50",
    "paper_r50_refine",
    "paper_r50_single_scale",
    "paper_r50_single_scale_dc5",
    "paper_r50_two_stage",
    "paper_x101_dcn_two_stage",
    "small",
    "with_augmentation",
    "with_backbone",
    "with_image_size",
]


def paper_r50() -> TrainConfig:
    """Recipe of the paper's base model on COCO.

    ddetr train paper_r50 --data /data/coco
    Cost: hardware, hours and date of our own run; empty until there is one. The authors: 325 V100 hours.
    Expected: 44.5 AP +- 0.3 on val2017 after 50 epochs (official README; our run: pending).
    """
    return TrainConfig(name="paper_r50")


def paper_r50_refine() -> TrainConfig:
    """Recipe of the paper's model with iterative box refinement, on COCO.

    ddetr train paper_r50_refine --data /data/coco
    Cost: empty until there is a run of ours. The authors: 325 V100 hours.
    Expected: 46.2 AP +- 0.3 on val2017 after 50 epochs (official README; our run: pending).
    """
    return TrainConfig(
        name="paper_r50_refine",
        model=DeformableDETRConfig(variant="refine"),
    )


def paper_r50_two_stage() -> TrainConfig:
    """Recipe of the paper's two-stage model on COCO: box refinement, and queries from the encoder's proposals.

    ddetr train paper_r50_two_stage --data /data/coco
    Cost: empty until there is a run of ours. The authors: 340 V100 hours.
    Expected: 46.9 AP +- 0.3 on val2017 after 50 epochs (official README; our run: pending).
    """
    return TrainConfig(
        name="paper_r50_two_stage",
        model=DeformableDETRConfig(variant="two_stage"),
    )


def paper_x101_dcn_two_stage() -> TrainConfig:
    """Recipe of the paper's largest model, two-stage on ResNeXt-101 with deformable convolutions, on COCO.

    ddetr train paper_x101_dcn_two_stage --data /data/coco
    Cost: empty until there is a run of ours. The authors do not say.
    Expected: 50.1 AP on test-dev, the paper's row "ResNeXt-101 + DCN" of Table 3 without test-time augmentation; with
    it (`--tta`) the last row, 52.3. The plain ResNeXt-101 has 49.0. Neither weights nor settings were published: which
    ResNeXt-101 it was (here 64x4d), which stages are deformable (here the last three) and the scales in testing are
    not known.
    """
    return TrainConfig(
        name="paper_x101_dcn_two_stage",
        model=DeformableDETRConfig(variant="two_stage", backbone="resnext101_64x4d.tv_in1k", deformable_stages=3),
    )


def paper_r50_single_scale() -> TrainConfig:
    """Recipe of the paper's model with one feature level, of stride 32, on COCO.

    ddetr train paper_r50_single_scale --data /data/coco
    Cost: empty until there is a run of ours. The authors: 160 V100 hours.
    Expected: 39.4 AP +- 0.3 on val2017 after 50 epochs (official README; our run: pending).
    """
    return TrainConfig(
        name="paper_r50_single_scale",
        model=DeformableDETRConfig(num_levels=1),
    )


def paper_r50_single_scale_dc5() -> TrainConfig:
    """Recipe of the paper's model with one feature level, of stride 16 by a dilated last stage, on COCO.

    ddetr train paper_r50_single_scale_dc5 --data /data/coco
    Cost: empty until there is a run of ours. The authors: 215 V100 hours.
    Expected: 41.5 AP +- 0.3 on val2017 after 50 epochs (official README; our run: pending).
    """
    return TrainConfig(
        name="paper_r50_single_scale_dc5",
        model=DeformableDETRConfig(num_levels=1, dilation=True),
    )


def detr_r50() -> TrainConfig:
    """Recipe of DETR (arXiv 2005.12872), the model that Deformable DETR is compared with, on COCO.

    ddetr train detr_r50 --data /data/coco
    Cost: empty until there is a run of ours. The authors: 28 minutes an epoch on 8 V100, about 10 days.
    Expected: 42.0 AP +- 0.3 on val2017 after 500 epochs, the learning rate dropped after 400 (DETR's table 1 and
    README; our run: pending). After 150 epochs, dropped after 100, the authors had 39.5.
    """
    return TrainConfig(
        name="detr_r50",
        model=DETRConfig(),
        optimizer=OptimizerConfig(base_lr=1e-4, base_batch_size=64),
        schedule=ScheduleConfig(epochs=500),
        run=RunConfig(batch_size=64),
    )


def detr_r50_dc5() -> TrainConfig:
    """Recipe of DETR with a dilated last stage of the backbone (DC5), on COCO.

    ddetr train detr_r50_dc5 --data /data/coco
    Cost: empty until there is a run of ours; an image costs 187 GFLOPs, and 86 with `detr_r50`
    (DETR's table 1).
    Expected: 43.3 AP +- 0.3 on val2017 after 500 epochs (DETR's table 1 and README; our run: pending).
    """
    return replace(detr_r50(), name="detr_r50_dc5", model=DETRConfig(dilation=True))


def detr_small() -> TrainConfig:
    """Recipe of a small DETR for a few hundred photos, to compare with `small`, which is the better one for them.

    ddetr train detr_small --data /data/photos
    Cost: empty until there is a run of ours.
    Expected: less than with `small`, and later: DETR learns where to look from the data alone. Its authors advise
    against fewer than ten thousand images without the weights of a whole detector.
    """
    return TrainConfig(
        name="detr_small",
        model=DETRConfig(
            backbone="mobilenetv2_100",
            # Small images have few tokens otherwise: 12 x 16 for 384 x 512 pixels.
            dilation=True,
            hidden_dim=128,
            num_heads=4,
            encoder_layers=2,
            decoder_layers=3,
            ffn_dim=512,
            num_queries=100,
            dropout=0.0,
        ),
        preprocessing="auto",
        augmentation="auto",
        optimizer=OptimizerConfig(base_lr=4e-4, base_batch_size=4),
        schedule=ScheduleConfig(epochs="auto", warmup_steps="auto"),
        run=RunConfig(batch_size=4, eval_every="auto", fit_queries=True),
    )


def small() -> TrainConfig:
    """Recipe of a small two-stage model for a few hundred photos, on a CPU or GPU; the default of `ddetr train`.

    ddetr train --data /data/photos
    Cost: an hour or less on one core of a server for 200 to 250 photos (2026-11).
    Expected: depends on the photos. Ours: 56.7 AP +- 0.5 on blood cells, 70.5 +- 0.4 on playing cards, three seeds each
    (test splits; benchmarks/results).
    """
    return TrainConfig(
        name="small",
        model=DeformableDETRConfig(
            variant="two_stage",
            backbone="mobilenetv2_100",
            hidden_dim=128,
            num_heads=4,
            encoder_layers=2,
            decoder_layers=3,
            ffn_dim=512,
            num_queries=100,
            dropout=0.0,
            proposals="distinct",
        ),
        preprocessing="auto",
        augmentation="auto",
        optimizer=OptimizerConfig(base_lr=8e-4, base_batch_size=4),
        schedule=ScheduleConfig(epochs="auto", warmup_steps="auto"),
        run=RunConfig(batch_size=4, eval_every="auto", fit_queries=True),
    )


def finetune() -> TrainConfig:
    """Recipe of fine-tuning a pretrained detector, with its structure and image size; the default with `--weights`.

    ddetr train --data /data/photos --weights best.safetensors
    Cost: a step costs what it does in training those weights; `--freeze backbone` saves some of it.
    Expected: classes that the weights know keep most of their AP from the first epoch on, new ones take a few epochs
    (blood cells: 44 and 49 AP50 of 50 and 51 after one epoch; benchmarks/results/2026-11-23_transfer_bccd.jsonl).
    """
    return TrainConfig(
        name="finetune",
        preprocessing="weights",
        augmentation="auto",
        # An eighth of the rate of `small`; a higher one would destroy what the weights have learnt.
        optimizer=OptimizerConfig(base_lr=1e-4, base_batch_size=4),
        schedule=ScheduleConfig(epochs="auto", warmup_steps="auto"),
        run=RunConfig(batch_size=4, eval_every="auto", fit_queries=True, start="weights"),
    )


def demo() -> TrainConfig:
    """Recipe of a tiny model for the drawn scenes of `ddetr demo`, trained from random weights.

    ddetr demo
    Cost: about 9 minutes on 3 cores of a server (2026-11).
    Expected: AP50 of at least 0.80 on held-out scenes; our run had 0.85.
    """
    return with_image_size(
        TrainConfig(
            name="demo",
            model=DeformableDETRConfig(
                # With learned queries, each query soon has its own region; proposals take longer to avoid duplicates.
                variant="refine",
                backbone="test_resnet",
                backbone_weights="none",
                frozen_stages=0,
                frozen_batch_norm=False,
                num_levels=3,
                hidden_dim=96,
                num_heads=4,
                encoder_layers=1,
                decoder_layers=4,
                ffn_dim=256,
                num_queries=30,
                dropout=0.0,
                # Scenes differ in size. Batch norm would learn statistics with padding, which are wrong without it.
                features="per_image",
            ),
            # Nothing is pretrained, so no part needs a lower rate, and gradients may be larger.
            optimizer=OptimizerConfig(
                base_lr=1e-3,
                base_batch_size=4,
                backbone_lr_factor=1.0,
                offsets_lr_factor=1.0,
                clip_norm=1.0,
            ),
            augmentation=Augmentation(crop_probability=0.0),
            schedule=ScheduleConfig(epochs=22, warmup_steps=50),
            run=RunConfig(batch_size=4, eval_every=4),
        ),
        160,
    )


RECIPES: dict[str, Callable[[], TrainConfig]] = {
    recipe.__name__: recipe
    for recipe in (
        small,
        finetune,
        paper_r50,
        paper_r50_refine,
        paper_r50_two_stage,
        paper_x101_dcn_two_stage,
        paper_r50_single_scale,
        paper_r50_single_scale_dc5,
        detr_r50,
        detr_r50_dc5,
        detr_small,
        dino_r50,
        dino_r50_5scale,
        dino_r50_improved,
        dino_small,
        demo,
    )
}


def with_image_size(config: TrainConfig, short_side: int) -> TrainConfig:
    """Config with another image size; all settings in pixels of the input change in proportion.

    Args:
        config: the config to change.
        short_side: shorter side of the images, in pixels: in evaluation, and the largest in training.

    Raises:
        ConfigError: the size is below 1, or so large that the longer side would exceed `LARGEST_SIDE`.
    """
    if short_side < 1:
        raise ConfigError(f"the image size is {short_side}; it must be at least 1")
    before = Preprocessing() if isinstance(config.preprocessing, str) else config.preprocessing
    largest = LARGEST_SIDE * before.short_side // before.max_side
    if short_side > largest:
        raise ConfigError(f"the image size is {short_side}; it must be at most {largest}")
    max_side = max(short_side, round(before.max_side * (short_side / before.short_side)))
    # An augmentation that is "auto" gets this size later, when it is chosen by the data.
    augmentation = config.augmentation
    if isinstance(augmentation, Augmentation):
        augmentation = augmentation.scaled(short_side)
    return replace(
        config, preprocessing=replace(before, short_side=short_side, max_side=max_side), augmentation=augmentation
    )


def with_augmentation(config: TrainConfig, preset: str) -> TrainConfig:
    """Config with another augmentation preset, scaled to the config's image size.

    Raises:
        ConfigError: there is no such preset.
    """
    size = Preprocessing() if isinstance(config.preprocessing, str) else config.preprocessing
    return replace(config, augmentation=find_preset(preset).scaled(size.short_side))


def with_backbone(config: TrainConfig, *, name: str | None, weights: str | None) -> TrainConfig:
    """Config with another backbone, or other weights for it.

    With weights "none", no stage and no batch norm of the backbone stays frozen, because they have learnt nothing.

    Args:
        config: the config to change.
        name: name of the backbone in timm; None keeps the config's.
        weights: "hub", a file, or "none"; None keeps the config's.

    Raises:
        ConfigError: the model has no backbone that can be chosen.
    """
    model: Any = config.model
    if not hasattr(model, "backbone"):
        raise ConfigError(f"the model of {config.name} has no backbone to choose: {model.describe()}")
    if name is not None:
        model = replace(model, backbone=name)
    if weights == "none":
        model = replace(model, backbone_weights="none", frozen_stages=0, frozen_batch_norm=False)
    elif weights is not None:
        model = replace(model, backbone_weights=weights)
    return replace(config, model=model)


def find_recipe(name: str) -> TrainConfig:
    """Config of the recipe of this name, or of a JSON file.

    Raises:
        ConfigError: neither exists (the message suggests the nearest name), or the file holds no valid config.
    """
    if name in RECIPES:
        return RECIPES[name]()
    if Path(name).suffix == ".json" or Path(name).is_file():
        return from_json(read_json(Path(name)), name)
    near = difflib.get_close_matches(name, RECIPES, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(RECIPES)}"
    raise ConfigError(f"no recipe and no JSON file called {name!r}; {hint}")
