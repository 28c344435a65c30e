"""Accuracy of a model trained with our loss, against one trained with that of the library transformers.

`python -m benchmarks.accuracy.vs_transformers --data FOLDER --backbone-weights FILE --epochs 20 --output FOLDER`

Each arm trains a model of its own. Data, first weights, optimiser, schedule, batches and their order, augmentation
and evaluation are the same for all; a checksum of every batch goes into the results. An arm writes ARM.jsonl, a line
for each epoch, and goes on where it stopped if it is started again. Arms may run at the same time, each in a process
of its own with `--arms NAME`. After its arms, a command writes table.md and curves.png of all arms in the folder, as
far as they are, and prints a line of JSON about them.
"""

import argparse
import copy
import json
import math
import sys
import time
import zlib
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.accuracy.arms import ARMS, Learner, difference, make_learner, make_optimizer, untrained
from benchmarks.accuracy.comparison import Rows, read_arm, report
from benchmarks.cases import deformable
from benchmarks.report import machine, say
from deformable_detr.core.config import apply_overrides, to_dict
from deformable_detr.core.detections import Detections
from deformable_detr.core.files import write_atomically
from deformable_detr.core.types import Batch
from deformable_detr.data.dataset import DetectionDataset, align_classes
from deformable_detr.data.loader import BatchLoader, make_loader
from deformable_detr.data.open import list_splits
from deformable_detr.data.splits import TrainingData, open_split, open_training_data
from deformable_detr.evaluation.coco_metrics import coco_metrics
from deformable_detr.models.postprocess import to_detections
from deformable_detr.runs.config import TrainConfig, settled
from deformable_detr.runs.recipes import find_recipe, with_backbone, with_image_size
from deformable_detr.training.autoconfig import fit_to_data
from deformable_detr.training.optimizer import (
    clip_gradients,
    learning_rate,
    schedule_share,
    set_learning_rate,
)


class Setting(NamedTuple):
    """What all arms share."""

    config: TrainConfig
    data: TrainingData
    test: DetectionDataset | None

    def loader(self) -> BatchLoader:
        """Batches to learn from, the same for every arm: they depend on seed and epoch alone."""
        config = self.config
        return make_loader(
            self.data.train,
            settled(config.preprocessing),
            batch_size=settled(config.run.batch_size),
            augmentation=settled(config.augmentation),
            seed=config.run.seed,
        )


def prepare(data: Path, recipe: str, overrides: Iterable[str], **changes: Any) -> Setting:
    """Data and config for a comparison: as in the recipe, but where transformers has nothing like it.

    Args:
        data: a data set in any known format.
        recipe: the name of ours.
        overrides: further settings, as "model.num_queries=50".
        changes: `epochs`, `short_side` and `backbone_weights`; None leaves the recipe's.
    """
    config = find_recipe(recipe)
    if changes.get("short_side"):
        config = with_image_size(config, changes["short_side"])
    config = with_backbone(config, name=None, weights=changes.get("backbone_weights"))
    config = config.with_settings(
        model=replace(deformable(config), dropout=0.0, proposals="paper", features="padded"),
        epochs=changes.get("epochs") or config.schedule.epochs,
        ema_decay=0.0,
    )
    config = apply_overrides(config, list(overrides))
    if (config.run.start, config.run.freeze, config.compute.accumulate, config.optimizer.ema_decay) != (
        "backbone",
        (),
        1,
        0.0,
    ):
        raise SystemExit("start, freeze, accumulate and ema_decay have no effect in a comparison; leave them out")
    opened = open_training_data(data, val_share=config.data.val_share, seed=config.run.seed, skip_bad_images=False)
    test = None
    if "test" in list_splits(data):
        test = align_classes(open_split(data, "test", None, False), opened.train.classes, opened.train.category_ids)
    config, _ = fit_to_data(config, opened.train)
    return Setting(config, opened, test)


def train_arm(name: str, setting: Setting, folder: Path) -> None:
    """Train one arm to the end, from where it is: a line for the start, each epoch, and the end."""
    config, path, saved = setting.config, folder / f"{name}.jsonl", folder / f"{name}.pt"
    rows = read_arm(path)
    if rows and rows[0]["config"] != _plain(config):
        raise SystemExit(f"{path} was begun with other settings; name another folder with --output")
    if rows and rows[-1]["kind"] == "end":
        return
    loader = setting.loader()
    learner = make_learner(name, deformable(config), config.run.seed)
    optimizer = make_optimizer(
        learner, config.optimizer, learning_rate(config.optimizer, settled(config.run.batch_size))
    )
    epoch = 0
    if saved.exists():
        state = torch.load(saved, weights_only=True)
        learner.load_state_dict(state["weights"])
        optimizer.load_state_dict(state["optimizer"])
        epoch = state["epoch"]
        _write(path, [row for row in rows if row.get("epoch", 0) <= epoch])
    else:
        _write(path, [{"kind": "start", "arm": name, **_start(name, setting, learner)}])
    while epoch < settled(config.schedule.epochs):
        started = time.monotonic()
        figures = _run_epoch(learner, optimizer, loader, config, epoch)
        epoch += 1
        seconds = time.monotonic() - started
        row = {"kind": "epoch", "arm": name, "epoch": epoch, **figures, "train_seconds": seconds}
        row["val"] = judge(learner, setting, setting.data.val)
        _write(path, [*read_arm(path), row])
        state = {"weights": learner.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}
        write_atomically(saved, partial(torch.save, state))
        say(
            f"{name} {epoch}/{config.schedule.epochs}  loss {row['loss']:.2f}  "
            f"AP {row['val']['ap']:.3f}  ({seconds:.0f} s)"
        )
    test = judge(learner, setting, setting.test) if setting.test is not None else None
    _write(path, [*read_arm(path), {"kind": "end", "arm": name, "test": test}])
    saved.unlink()


def _run_epoch(
    learner: Learner, optimizer: torch.optim.AdamW, loader: BatchLoader, config: TrainConfig, epoch: int
) -> dict[str, Any]:
    """The steps of one epoch: their mean loss, and what the batches add up to."""
    learner.train()
    loader.set_epoch(epoch)
    losses, checksum, step = [], 0, epoch * len(loader)
    for batch in loader:
        checksum = checksum_of(batch, checksum)
        set_learning_rate(
            optimizer, schedule_share(config.schedule, step, settled(config.schedule.epochs) * len(loader))
        )
        loss = learner.loss(batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        clip_gradients(learner, config.optimizer.clip_norm)
        optimizer.step()
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            raise SystemExit(f"the loss of step {step + 1} is {losses[-1]}")
        step += 1
    return {"step": step, "loss": sum(losses) / len(losses), "batches": f"{checksum:08x}"}


@torch.no_grad()
def judge(learner: Learner, setting: Setting, dataset: DetectionDataset) -> dict[str, Any]:
    """COCO's twelve numbers, and AP50 of every class."""
    started = time.monotonic()
    config = setting.config
    learner.eval()
    found: dict[int, Detections] = {}
    for batch in make_loader(dataset, settled(config.preprocessing), batch_size=settled(config.run.batch_size)):
        final = learner(batch.images, batch.padding_mask).final
        found.update(zip(batch.sample_indices, to_detections(final, batch.original_sizes_wh), strict=True))
    metrics = coco_metrics([found[index] for index in range(len(dataset))], dataset)
    by_class = {name: own.ap50 for name, own in metrics.per_class.items()}
    return {**metrics.twelve(), "ap50_by_class": by_class, "seconds": time.monotonic() - started}


def checksum_of(batch: Batch, start: int = 0) -> int:
    """Of everything a model gets to see of a batch, and of its objects."""
    tensors = [batch.images, batch.padding_mask]
    tensors += [part for target in batch.targets for part in (target.labels, target.boxes)]
    for tensor in tensors:
        start = zlib.crc32(tensor.contiguous().numpy().tobytes(), start)
    return start


def _start(name: str, setting: Setting, learner: Learner) -> dict[str, Any]:
    config, batch = setting.config, next(iter(setting.loader()))
    return {
        "config": _plain(config),
        "images": {
            "train": len(setting.data.train),
            "val": len(setting.data.val),
            "test": len(setting.test or ()),
        },
        "parameters": sum(parameter.numel() for parameter in learner.parameters()),
        "difference_before_the_first_step": difference(deformable(config), name, config.run.seed, batch),
        "without_gradient": untrained(copy.deepcopy(learner), batch),
        **machine("cpu"),
        **{package: version(package) for package in ("transformers", "timm")},
    }


def _plain(config: TrainConfig) -> dict[str, Any]:
    plain = to_dict(config)
    plain["model"]["backbone_weights"] = Path(deformable(config).backbone_weights).name  # no path of this machine
    return plain


def _write(path: Path, rows: Rows) -> None:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    write_atomically(path, partial(Path.write_text, data=text, encoding="utf-8"))


def main(arguments: list[str] | None = None) -> None:
    """Train the arms asked for, then write the table, the curves and the line of JSON."""
    options = _options(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    setting = prepare(
        options.data,
        options.recipe,
        options.set,
        epochs=options.epochs,
        short_side=options.short_side,
        backbone_weights=options.backbone_weights,
    )
    options.output.mkdir(parents=True, exist_ok=True)
    for name in options.arms:
        train_arm(name, setting, options.output)
    line = report(options.output, options.data.name)
    sys.stdout.write(json.dumps(line) + "\n")


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="a data set in any known format")
    parser.add_argument("--output", type=Path, required=True, help="folder for the results; arms in it go on")
    parser.add_argument("--recipe", default="small", help="the architecture, optimiser and augmentation of all arms")
    parser.add_argument("--epochs", type=int, help="the recipe's if left out")
    parser.add_argument("--short-side", type=int, help="of the images, in pixels; the recipe's if left out")
    parser.add_argument("--backbone-weights", help="a file; timm's hub if left out")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), help="which to train now")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="any other setting of the recipe")
    parser.add_argument("--threads", type=int, default=0, help="0: as many as torch takes by itself")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
