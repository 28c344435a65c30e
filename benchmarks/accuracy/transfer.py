"""Gain of starting from a detector of nearly the same classes: one epoch on a changed data set, in three ways.

    python -m benchmarks.accuracy.transfer --data bccd --backbone-weights mobilenetv2_100.safetensors

Trains the recipe on the data as they are. Then one class gets another name, and of another class the objects at the
image's border become a class of their own. One epoch on that: from the trained weights; from the same weights with all
rows of the class heads fresh; and from the weights of the backbone alone. The table goes to standard error; one line
of JSON goes to standard output, last.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import deformable_detr
from benchmarks.report import machine, say
from deformable_detr.data.dataset import DetectionDataset, Sample
from deformable_detr.data.splits import open_training_data
from deformable_detr.runs.config import TrainConfig, settled
from deformable_detr.runs.recipes import find_recipe, with_backbone, with_image_size
from deformable_detr.training.finetune import Source, match_classes, read_source
from deformable_detr.training.train import Run

_BORDER_PX = 2.0
_FORGOTTEN = "forgotten "


def change(dataset: DetectionDataset, renamed: dict[str, str], divided: dict[str, str]) -> DetectionDataset:
    """The same images with classes under new names, and objects at the border as classes of their own.

    Args:
        dataset: stays as it is.
        renamed: new names, by old.
        divided: by class, the name of the class that its objects at the image's border go to.
    """
    moved = {dataset.classes.index(old): len(dataset.classes) + i for i, old in enumerate(divided)}

    def divide(sample: Sample) -> Sample:
        width, height = sample.size_wh
        inside = (sample.boxes_xyxy[:, :2] > _BORDER_PX).all(1)
        inside &= (sample.boxes_xyxy[:, 2:] < np.array([width, height]) - _BORDER_PX).all(1)
        class_ids = sample.class_ids.copy()
        for old, new in moved.items():
            class_ids[(sample.class_ids == old) & ~inside] = new
        return replace(sample, class_ids=class_ids)

    names = (*(renamed.get(name, name) for name in dataset.classes), *divided.values())
    ids = (*dataset.category_ids, *(max(dataset.category_ids) + 1 + i for i in range(len(divided))))
    return replace(dataset, classes=names, category_ids=ids, samples=[divide(one) for one in dataset.samples])


def forgetful(source: Source) -> Source:
    """The same weights under class names that nobody has."""
    checkpoint = source.checkpoint
    return source._replace(
        checkpoint=replace(checkpoint, classes=tuple(_FORGOTTEN + name for name in checkpoint.classes))
    )


def compare(
    config: TrainConfig, data: Path, folder: Path, *, epochs: int, renamed: dict[str, str], divided: dict[str, str]
) -> dict[str, Any]:
    """AP by class after one epoch, for each of the three ways to start; and of the weights they start from."""
    opened = open_training_data(data, val_share=config.data.val_share, seed=config.run.seed, skip_bad_images=False)
    old_train, old_val = opened.train, opened.val
    train, val = (change(one, renamed, divided) for one in (old_train, old_val))
    say(f"{len(train)} images to learn from, {len(val)} to judge by; objects: {train.objects_per_class()}")
    before = _figures(
        "before",
        lambda to: _train(config.with_settings(epochs=epochs, eval_every=epochs), old_train, old_val, to),
        folder,
    )
    source = read_source(folder / "before" / "last.safetensors")
    gentle = with_image_size(deformable_detr.recipes.finetune(), settled(config.preprocessing).short_side)
    gentle = gentle.with_settings(epochs=1, num_workers=config.data.num_workers, seed=config.run.seed)
    starts: dict[str, Callable[[Path], Run]] = {
        "weights": lambda to: _train(gentle, train, val, to, source),
        "weights_fresh_heads": lambda to: _train(gentle, train, val, to, forgetful(source)),
        "backbone": lambda to: _train(config.with_settings(epochs=1), train, val, to),
    }
    known = match_classes(train.classes, old_train.classes)
    return {
        "kept": [name for name, row in zip(train.classes, known, strict=True) if row is not None],
        "fresh": [name for name, row in zip(train.classes, known, strict=True) if row is None],
        "before": before,
        "after_one_epoch": {name: _figures(name, start, folder) for name, start in starts.items()},
    }


def _train(
    config: TrainConfig, train: DetectionDataset, val: DetectionDataset, to: Path, weights: Source | None = None
) -> Run:
    return deformable_detr.train(config, data=train, val_data=val, output=to, weights=weights, device="cpu")


def _figures(name: str, start: Callable[[Path], Run], folder: Path) -> dict[str, Any]:
    began = time.monotonic()
    start(folder / name)
    records = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    last = next(record for record in reversed(records) if record["kind"] == "epoch")
    figures = {"ap": last["val"]["ap"], "ap50": last["val"]["ap50"]}
    figures["ap_per_class"] = {name: one["ap"] for name, one in last["val_per_class"].items()}
    figures["ap50_per_class"] = {name: one["ap50"] for name, one in last["val_per_class"].items()}
    say(f"{name}: AP50 {100 * figures['ap50']:.1f}, {time.monotonic() - began:.0f} s")
    return figures


def table(results: dict[str, Any]) -> str:
    """AP50 of every class in percent, a line for each start; kept classes first."""
    classes = [*results["kept"], *results["fresh"]]
    lines = [" ".join([f"{'AP50 after one epoch':<22}", *(f"{name:>16}" for name in classes)])]
    for start, figures in results["after_one_epoch"].items():
        values = (figures["ap50_per_class"][name] for name in classes)
        lines.append(" ".join([f"{start:<22}", *(f"{100 * value:>16.1f}" for value in values)]))
    lines.append(f"{'':<22} " + " ".join(f"{'kept' if name in results['kept'] else 'new':>16}" for name in classes))
    return "\n".join(lines)


def _pair(text: str) -> tuple[str, str]:
    old, equals, new = text.partition("=")
    if not (old and equals and new):
        raise argparse.ArgumentTypeError(f"{text!r} is not OLD=NEW")
    return old, new


def main(arguments: list[str] | None = None) -> None:
    """Train, change, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--recipe", default="small", help="a recipe or a config.json")
    parser.add_argument("--backbone-weights", help="as for ddetr train")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--epochs", type=int, default=8, help="before the change")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rename", type=_pair, action="append", metavar="OLD=NEW")
    parser.add_argument("--divide", type=_pair, action="append", metavar="OLD=NEW", help="objects of OLD at the border")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    config = find_recipe(given.recipe).with_settings(num_workers=1)
    config = with_backbone(config, name=None, weights=given.backbone_weights)
    if given.image_size is not None:
        config = with_image_size(config, given.image_size)
    renamed = dict(given.rename or [("Platelets", "Thrombocytes")])
    divided = dict(given.divide or [("RBC", "RBC at the border")])
    with tempfile.TemporaryDirectory() as folder:
        results = compare(config, given.data, Path(folder), epochs=given.epochs, renamed=renamed, divided=divided)
    say(table(results))
    facts = {
        "benchmark": "accuracy/transfer",
        "data": given.data.name,
        "recipe": config.name,
        "image_size": settled(config.preprocessing).short_side,
        "epochs_before": given.epochs,
        "seed": config.run.seed,
        "renamed": renamed,
        "divided": divided,
    }
    print(json.dumps({**facts, **results, **machine("cpu")}))


if __name__ == "__main__":
    main()
