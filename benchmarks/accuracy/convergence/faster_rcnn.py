"""Faster R-CNN as a yardstick: torchvision's, on our backbone, learning from our loader, judged by our evaluator.

    python -m benchmarks.accuracy.convergence.faster_rcnn DATA --backbone-weights FILE --image-size auto \
        --epochs 24 --lr 2e-4 --seed 0 --output DIR

The backbone gives its maps of strides 8, 16 and 32 with the weights and the frozen parts of our recipes; above it are a
feature pyramid of 128 channels with one more level, and a box head of 256 channels, so that the network is about as
large as ours. There is one size of anchors for each level, in three shapes, spread over the sizes that the objects have
in the training images as the network sees them. AdamW with a linear warm-up and a cosine, averaged weights as ours.
Boxes that overlap are removed (NMS); ours need no such step.

DIR has epochs.jsonl, a line for each epoch, and best.pt. A run that was stopped goes on at its step when the same
command is given again; DIR has last.pt until it is finished.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.accuracy.convergence.place import read_lines
from benchmarks.accuracy.convergence.rcnn import RCNNLearner, RCNNSettings, anchor_sizes, judge, make_learner
from benchmarks.accuracy.convergence.watch import End, Watch
from benchmarks.report import machine, say
from deformable_detr.core.config import flat_settings
from deformable_detr.core.distributed import ALONE
from deformable_detr.core.files import write_atomically, write_text
from deformable_detr.data.dataset import DetectionDataset
from deformable_detr.data.open import list_splits, open_dataset
from deformable_detr.data.splits import open_training_data
from deformable_detr.evaluation.coco_metrics import Metrics, to_coco_results
from deformable_detr.runs.config import ScheduleConfig, TrainConfig, plan_of, settled
from deformable_detr.runs.config_file import to_json
from deformable_detr.runs.recipes import small, with_backbone, with_image_size
from deformable_detr.training.autoconfig import fit_to_data
from deformable_detr.training.optimizer import schedule_share, set_learning_rate
from deformable_detr.training.setup import training_loader
from deformable_detr.training.signals import terminable, uninterrupted

_CPU = torch.device("cpu")
_WARM_UP = 2


def train(
    config: TrainConfig, settings: RCNNSettings, data: Path, folder: Path, watch: Watch
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, Any]] | None:
    """Train to the end, from where the run is.

    Args:
        config: settings of ours: data, image size, augmentation, epochs, images per step, seed, and the backbone.
        settings: what is particular to Faster R-CNN.
        data: the data set.
        folder: folder of the run, made if it does not exist.
        watch: receives a line for each epoch, and may stop the run between two steps.

    Returns:
        Lines of the epochs, detections of the best weights in the validation images, and facts; None if it was stopped.

    Raises:
        SystemExit: the folder has a run of other settings, or the loss is not finite.
    """
    opened = open_training_data(data, val_share=config.data.val_share, seed=config.run.seed, skip_bad_images=False)
    config, _ = fit_to_data(config, opened.train)
    torch.manual_seed(config.run.seed)
    learner = make_learner(config, settings, opened.train)
    facts = _facts(config, settings, learner.model, opened.train)
    folder.mkdir(parents=True, exist_ok=True)
    run = _Run(config, learner, opened.train, opened.val, folder)
    run.begin(facts)
    with terminable():
        try:
            while run.epoch < settled(config.schedule.epochs):
                watch.say(run.train_epoch(watch))
        except KeyboardInterrupt:
            run.save()
            watch.note(None)
            return None
    run.last.unlink(missing_ok=True)
    best = learner.ema.model
    best.load_state_dict(torch.load(run.best, weights_only=True))
    _, found = judge(best, config, opened.val)
    if "test" in list_splits(data):
        facts["test"] = judge(best, config, open_dataset(data, split="test"))[0].twelve()
    return run.rows, to_coco_results(found, opened.val), facts


class _Run:
    """Progress of a run, with its files."""

    def __init__(
        self, config: TrainConfig, learner: RCNNLearner, train: DetectionDataset, val: DetectionDataset, folder: Path
    ) -> None:
        self.config, self.learner, self.val = config, learner, val
        self.loader = training_loader(config, plan_of(config), train, _CPU, ALONE)
        total = len(self.loader) * settled(config.schedule.epochs)
        self.schedule = ScheduleConfig(shape="cosine", warmup_steps=settled(config.schedule.warmup_steps))
        self.total_steps = total
        self.path, self.last, self.best = folder / "epochs.jsonl", folder / "last.pt", folder / "best.pt"
        self.rows: list[dict[str, Any]] = []
        self.epoch, self.batches, self.loss_sum = 0, 0, 0.0
        self.spent = {"cpu": 0.0, "wall": 0.0}

    def begin(self, facts: dict[str, Any]) -> None:
        """Begin, or go on where the run was stopped."""
        lines = read_lines(self.path)
        if lines and lines[0]["config"] != facts["config"]:
            raise SystemExit(f"{self.path} was begun with other settings; name another folder")
        rows = lines[1:]
        if self.last.exists():
            state = torch.load(self.last, weights_only=True)
            self.learner.model.load_state_dict(state["weights"])
            self.learner.optimizer.load_state_dict(state["optimizer"])
            self.learner.ema.model.load_state_dict(state["averages"])
            self.learner.ema.updates = state["updates"]
            self.epoch, self.batches, self.loss_sum = state["epoch"], state["batches"], state["loss_sum"]
            self.spent = state["spent"]
            torch.set_rng_state(state["random"])
        elif rows and rows[-1]["epoch"] == settled(self.config.schedule.epochs):
            self.epoch = rows[-1]["epoch"]
        self.rows = [row for row in rows if row["epoch"] <= self.epoch]
        self.head = {"kind": "start", **facts}
        self._write()

    def train_epoch(self, watch: Watch) -> str:
        """Train for the rest of an epoch, evaluate, save; returns a line for people."""
        began = time.process_time(), time.monotonic()
        before = dict(self.spent)

        def count() -> None:
            self.spent = {
                "cpu": before["cpu"] + time.process_time() - began[0],
                "wall": before["wall"] + time.monotonic() - began[1],
            }

        self.learner.model.train()
        self.loader.set_epoch(self.epoch, start=self.batches)
        steps = len(self.loader)
        for batch in self.loader if self.batches < steps else ():
            with uninterrupted():
                number = self.epoch * steps + self.batches
                set_learning_rate(self.learner.optimizer, schedule_share(self.schedule, number, self.total_steps))
                self.loss_sum += self.learner.step(batch)
                self.batches += 1
                count()
            watch.update("epoch", self.batches, steps)
        metrics, _ = judge(self.learner.ema.model, self.config, self.val)
        with uninterrupted():
            count()
            row = self._row(metrics, steps)
            if not self.rows or row["ap"] >= max(one["ap"] for one in self.rows):
                write_atomically(self.best, partial(torch.save, self.learner.ema.model.state_dict()))
            self.rows.append(row)
            self.epoch, self.batches, self.loss_sum, self.spent = self.epoch + 1, 0, 0.0, {"cpu": 0.0, "wall": 0.0}
            self._write()
            self.save()
        epochs = self.config.schedule.epochs
        return f"epoch {row['epoch']}/{epochs}  loss {row['loss']:.2f}  AP {row['ap']:.3f}  AP50 {row['ap50']:.3f}"

    def save(self) -> None:
        """Save everything that the run needs to go on."""
        state = {
            "weights": self.learner.model.state_dict(),
            "optimizer": self.learner.optimizer.state_dict(),
            "averages": self.learner.ema.model.state_dict(),
            "updates": self.learner.ema.updates,
            "epoch": self.epoch,
            "batches": self.batches,
            "loss_sum": self.loss_sum,
            "spent": self.spent,
            "random": torch.get_rng_state(),
        }
        write_atomically(self.last, partial(torch.save, state))

    def _row(self, metrics: Metrics, steps: int) -> dict[str, Any]:
        names = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
        return {
            "kind": "epoch",
            "epoch": self.epoch + 1,
            "step": (self.epoch + 1) * steps,
            "loss": self.loss_sum / steps,
            **{name: getattr(metrics, name) for name in names},
            "ap50_per_class": {name: one.ap50 for name, one in metrics.per_class.items()},
            "epoch_cpu_seconds": self.spent["cpu"],
            "epoch_wall_seconds": self.spent["wall"],
        }

    def _write(self) -> None:
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in (self.head, *self.rows)))


def _facts(config: TrainConfig, settings: RCNNSettings, model: nn.Module, train: DetectionDataset) -> dict[str, Any]:
    ours = flat_settings(to_json(config))
    kept = {
        name: value for name, value in ours.items() if name.split(".")[0] not in ("model", "optimizer", "criterion")
    }
    kept |= {name: ours[name] for name in ("model.backbone", "model.frozen_stages", "model.frozen_batch_norm")}
    kept["model.backbone_weights"] = Path(str(ours["model.backbone_weights"])).name  # no path of this machine
    own = {f"faster_rcnn.{name}": value for name, value in asdict(settings).items()}
    anchors = list(anchor_sizes(config, train))
    return {
        "parameters": sum(one.numel() for one in model.parameters()),
        "trained_parameters": sum(one.numel() for one in model.parameters() if one.requires_grad),
        "config": {**json.loads(json.dumps(kept)), **own, "faster_rcnn.anchors": anchors},
    }


def measure(
    config: TrainConfig, settings: RCNNSettings, data: Path, steps: int, pictures: int
) -> tuple[float, float, int]:
    """CPU seconds of a step, and of a picture in evaluation; and the number of parameters."""
    opened = open_training_data(data, val_share=config.data.val_share, seed=config.run.seed, skip_bad_images=False)
    config, _ = fit_to_data(config, opened.train)
    torch.manual_seed(config.run.seed)
    learner = make_learner(config, settings, opened.train)
    learner.model.train()
    loader = training_loader(config, plan_of(config), opened.train, _CPU, ALONE)
    began, done, epoch = 0.0, 0, 0
    while done < _WARM_UP + steps:
        loader.set_epoch(epoch)
        epoch += 1
        for batch in loader:
            began = time.process_time() if done == _WARM_UP else began
            learner.step(batch)
            done += 1
            if done == _WARM_UP + steps:
                break
    step = (time.process_time() - began) / steps
    few = opened.val.subset(range(min(pictures, len(opened.val))))
    began = time.process_time()
    judge(learner.ema.model, config, few)
    picture = (time.process_time() - began) / len(few)
    return step, picture, sum(one.numel() for one in learner.model.parameters())


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="a data set in any known format")
    parser.add_argument("--backbone-weights", required=True, help="a file, hub or none")
    parser.add_argument("--image-size", default="auto", help="shorter side in pixels, or auto: as our recipe chooses")
    parser.add_argument("--epochs", type=int, help="as our recipe chooses if left out")
    parser.add_argument("--lr", type=float, default=RCNNSettings.lr, help="for 4 images a step")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--backbone", default="mobilenetv2_100", help="by timm's name")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, and print the best epoch."""
    given = _options(arguments)
    torch.set_num_threads(1)
    config = with_backbone(small(), name=given.backbone, weights=given.backbone_weights)
    if given.image_size != "auto":
        if not given.image_size.isdecimal():
            raise SystemExit(f"--image-size is {given.image_size}; it must be auto or a number of pixels")
        config = with_image_size(config, int(given.image_size))
    config = config.with_settings(
        {"run.batch_size": given.batch_size, "run.seed": given.seed, "data.num_workers": 0, "run.eval_every": 1}
    )
    if given.epochs is not None:
        config = config.with_settings(epochs=given.epochs)
    given.output.mkdir(parents=True, exist_ok=True)
    watch = Watch(given.output / "clock.jsonl", End(None), "Faster R-CNN")
    done = train(config, replace(RCNNSettings(), lr=given.lr), given.data, given.output, watch)
    if done is None:
        say("stopped and saved; the same command goes on")
        return
    rows, _, facts = done
    best = max(rows, key=lambda row: (row["ap"], row["epoch"]))
    seconds = {name: sum(row[name] for row in rows) for name in ("epoch_cpu_seconds", "epoch_wall_seconds")}
    print(json.dumps({"data": given.data.name, "best": best, **facts, **seconds, **machine("cpu")}))


if __name__ == "__main__":
    main()
