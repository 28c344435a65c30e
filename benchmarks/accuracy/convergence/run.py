"""Training of the arms of a stage: skips what is finished, goes on with what was stopped, ends when it is told to.

    python -m benchmarks.accuracy.convergence.scenes FOLDER/data
    python -m benchmarks.accuracy.convergence.run plan --folder FOLDER --backbone-weights mobilenetv2_100.safetensors
    python -m benchmarks.accuracy.convergence.run grid --folder FOLDER --backbone-weights mobilenetv2_100.safetensors

Stages: "pilot", whether DETR learns the task at all; "grid", learning rates; "curves", the comparison; "table2", the
ablation of the paper's Table 2; "yardstick", Faster R-CNN. "plan" measures what each of them costs. After some minutes
(--minutes) or at SIGTERM a run is saved and the command ends; the same command goes on. Several may work on one folder
at a time. One line of JSON goes to standard output, last.
"""

import argparse
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.accuracy.convergence import faster_rcnn
from benchmarks.accuracy.convergence.arms import FASTER_RCNN, STAGES, Arm, Stage, arms_of, config_of, network_of
from benchmarks.accuracy.convergence.measures import metrics_by_size, write_results
from benchmarks.accuracy.convergence.place import Place, read_lines
from benchmarks.accuracy.convergence.plan import plan
from benchmarks.accuracy.convergence.rcnn import RCNNSettings
from benchmarks.accuracy.convergence.scenes import Task, open_task
from benchmarks.accuracy.convergence.watch import End, Watch, seconds_until
from benchmarks.report import machine, say
from deformable_detr.core.config import flat_settings
from deformable_detr.core.files import write_json
from deformable_detr.data.dataset import DetectionDataset
from deformable_detr.data.open import list_splits, open_dataset
from deformable_detr.evaluation.coco_metrics import coco_ground_truth, to_coco_results
from deformable_detr.evaluation.evaluate import evaluate
from deformable_detr.inference.detector import Detector
from deformable_detr.runs.config_file import to_json
from deformable_detr.runs.folder import RunFolder
from deformable_detr.training.train import resume, train

Judged = tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, Any]]
"""Epochs of a run, detections of its best weights, and facts about it."""


class Work:
    """What all arms of a command have in common.

    Args:
        place: the folder.
        task: the data.
        backbone_weights: as for `ddetr train`.
        overrides: settings of all arms that differ from those of the comparison.
        end: when to stop.
    """

    def __init__(self, place: Place, task: Task, backbone_weights: str, overrides: Sequence[str], end: End) -> None:
        self.place, self.task, self.end = place, task, end
        self.backbone_weights, self.overrides = backbone_weights, tuple(overrides)

    def complete(self, arm: Arm) -> bool:
        """Train an arm to its end and write its result; False if it was stopped before."""
        judged = self._faster_rcnn(arm) if arm.family == FASTER_RCNN else self._ours(arm)
        if judged is None:
            return False
        epochs, results, facts = judged
        seconds = seconds_until(self.place.clock(arm), len(epochs))
        rows = [{**row, **own} for row, own in zip(epochs, seconds, strict=True)]
        best = max(rows, key=lambda row: (row["ap"], row["epoch"]))
        by_size = metrics_by_size(self._val_document(), results)
        write_results(self.place.detections(arm), results)
        record = {
            "arm": arm.name,
            **arm._asdict(),
            "best": {**best, "by_size": by_size.twelve()},
            "last": rows[-1],
            "rows": rows,
            **facts,
            **machine("cpu"),
        }
        write_json(self.place.result(arm), record)  # last: the arm is finished now
        say(f"{arm.name}: AP {100 * rows[-1]['ap']:.1f}, best {100 * best['ap']:.1f} in epoch {best['epoch']}")
        return True

    def _val_document(self) -> dict[str, Any]:
        return coco_ground_truth(open_dataset(self.place.data, split="val"))

    def _ours(self, arm: Arm) -> Judged | None:
        folder = self.place.run(arm)
        config = config_of(arm, self.task, self.backbone_weights, self.overrides)
        model = network_of(arm, config)
        if len(_evaluated(folder)) < arm.epochs:
            watch = Watch(self.place.clock(arm), self.end, arm.name)
            common: dict[str, Any] = {
                "model": model,
                "device": "cpu",
                "log": [],
                "report": False,
                "on_interrupt": "return",
                "reporter": watch,
            }
            if folder.is_dir() and RunFolder(folder).resumable():
                run = resume(folder, **common)
            else:
                # What a process has left that ended before its first step.
                shutil.rmtree(folder, ignore_errors=True)
                self.place.clock(arm).unlink(missing_ok=True)
                run = train(config, data=self.place.data, output=folder, **common)
            if run.interrupted:
                watch.note(None)
                return None
        best = RunFolder(folder).best
        detector = Detector.load(best, model=network_of(arm, config), device="cpu")
        dataset = open_dataset(self.place.data, split="val")
        found = evaluate(detector, dataset)
        facts = {
            "test": self._on_test(lambda test: evaluate(detector, test).metrics.twelve()),
            "parameters": sum(one.numel() for one in detector.model.parameters()),
            "trained_parameters": sum(one.numel() for one in detector.model.parameters() if one.requires_grad),
            "config": {
                **flat_settings(to_json(config)),
                "model.backbone_weights": Path(self.backbone_weights).name,  # no path of this machine
            },
        }
        epochs = [
            {"epoch": row["epoch"], **_figures(row["val"], row["val_per_class"]), "loss": row["train"].get("loss")}
            for row in _evaluated(folder)
        ]
        for path in RunFolder(folder).resumable():  # the state of training, which nobody needs any more
            path.unlink()
        return epochs, to_coco_results(found.detections, found.dataset), facts

    def _on_test(self, judge: Callable[[DetectionDataset], dict[str, float]]) -> dict[str, float] | None:
        """Figures of the best weights on the test images, which choose nothing; None without such a split."""
        if "test" not in list_splits(self.place.data):
            return None
        return judge(open_dataset(self.place.data, split="test"))

    def _faster_rcnn(self, arm: Arm) -> Judged | None:
        # Pictures, augmentation, steps and frozen parts of our arms; the network and its optimiser are its own.
        config = config_of(arm._replace(family="base", factor=1.0), self.task, self.backbone_weights, self.overrides)
        settings = RCNNSettings(lr=RCNNSettings().lr * arm.factor)
        watch = Watch(self.place.clock(arm), self.end, arm.name)
        return faster_rcnn.train(config, settings, self.place.data, self.place.run(arm), watch)


def _evaluated(run: Path) -> list[dict[str, Any]]:
    rows = read_lines(run / "metrics.jsonl")
    return [row for row in rows if row["kind"] == "epoch" and row.get("val")]


def _figures(twelve: dict[str, float], per_class: dict[str, dict[str, float]]) -> dict[str, Any]:
    return {
        "ap": twelve["ap"],
        "ap50": twelve["ap50"],
        "ap75": twelve["ap75"],
        "ap50_per_class": {name: one["ap50"] for name, one in per_class.items()},
    }


def work_through(work: Work, stage: Stage, epochs: int, seeds: int) -> dict[str, Any]:
    """Train the arms of a stage one after another; returns what is done and what is left."""
    busy: set[str] = set()
    while True:
        # Anew after each arm: another process may have finished some, and a grid that is complete brings more.
        arms = arms_of(stage, epochs, seeds, work.place.rates(epochs))
        left = [arm for arm in arms if not work.place.result(arm).exists()]
        arm = next((one for one in left if one.name not in busy), None)
        if arm is None or work.end.has_come:
            break
        with work.place.alone_with(arm) as alone:
            if not alone:
                busy.add(arm.name)
                continue
            if not work.place.result(arm).exists() and not work.complete(arm):
                break
        busy.clear()
    left = [one for one in arms if not work.place.result(one).exists()]
    say(f"{stage}: {len(arms) - len(left)} of {len(arms)} arms finished" + "; the same command goes on" * bool(left))
    for name in sorted(busy & {one.name for one in left}):
        say(f"{name} is trained by another process")
    return {"stage": stage, "finished": len(arms) - len(left), "left": [one.name for one in left]}


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=(*STAGES, "plan"))
    parser.add_argument("--folder", type=Path, required=True, help="with the scenes in FOLDER/data")
    parser.add_argument("--backbone-weights", required=True, help="a file, hub or none")
    parser.add_argument("--epochs", type=int, default=100, help="of DETR's longest schedule; others follow from it")
    parser.add_argument("--seeds", type=int, default=5, help="of the decisive arms")
    parser.add_argument("--minutes", type=float, help="after which the run is saved and the command ends")
    parser.add_argument("--steps", type=int, default=6, help="plan: timed steps of each network")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="any setting of all arms")
    given = parser.parse_args(arguments)
    if given.epochs < 1 or given.seeds < 1 or given.steps < 1:
        parser.error("--epochs, --seeds and --steps must be at least 1")
    return given


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is left of a stage, or plan."""
    given = _options(arguments)
    torch.set_num_threads(1)
    place = Place(given.folder)
    task = open_task(place.data)
    if given.stage == "plan":
        record = plan(
            task, given.backbone_weights, given.set, epochs=given.epochs, seeds=given.seeds, steps=given.steps
        )
        print(json.dumps({**record, **machine("cpu")}))
        return
    weights = Path(given.backbone_weights).name
    place.claim_settings({"epochs": given.epochs, "backbone_weights": weights, "settings": list(given.set)})
    end = End(given.minutes)
    work = Work(place, task, given.backbone_weights, given.set, end)
    with end.listening():
        print(json.dumps(work_through(work, given.stage, given.epochs, given.seeds)))


if __name__ == "__main__":
    main()
