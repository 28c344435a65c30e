"""Demonstration without internet or photos: draw scenes, train on them, and evaluate on scenes not used in training."""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from deformable_detr.core.errors import OutputError
from deformable_detr.core.files import write_text
from deformable_detr.core.progress import Reporter, Silence, duration, percent
from deformable_detr.data.images import read_image
from deformable_detr.data.open import open_dataset
from deformable_detr.data.synthetic import draw_scenes
from deformable_detr.evaluation.coco_metrics import Metrics
from deformable_detr.evaluation.evaluate import EvaluationReport, evaluate
from deformable_detr.inference.detector import Detector
from deformable_detr.inference.drawing import contact_sheet, draw_detections
from deformable_detr.runs.config import TrainConfig
from deformable_detr.runs.recipes import demo as demo_recipe
from deformable_detr.training.train import Run, train

_NUM_PICTURES = 12
_COLUMNS = 4
_THRESHOLD = 0.4
_SCALE = 2.0
# Files and folders that a demonstration writes, and that the next one in the same folder may remove. Only earlier
# versions wrote curves.png.
_OWN = {"scenes", "unseen", "run", "pictures", "contact_sheet.jpg", "curves.png", "summary.md"}


@dataclass(frozen=True, kw_only=True)
class NumScenes:
    """Numbers of scenes to draw."""

    train: int = 400
    """Scenes to train on."""
    val: int = 40
    """Validation scenes, to select the best weights."""
    unseen: int = 100
    """Test scenes, to evaluate the best weights on."""


@dataclass(frozen=True, kw_only=True)
class Demonstration:
    """Result of a demonstration."""

    folder: Path
    """Folder with pictures, run folder and summary."""
    metrics: Metrics
    """Metrics on scenes that were neither trained on nor used to select the weights."""
    summary: str
    """Summary for people in Markdown, the text of summary.md."""


def demo(
    output: str | Path = "demo",
    *,
    config: TrainConfig | None = None,
    scenes: NumScenes | None = None,
    device: str = "auto",
    reporter: Reporter | None = None,
) -> Demonstration | None:
    """Draw scenes, train on them, evaluate on unseen ones, and write pictures, the report of the run and a summary.

    Args:
        output: a folder that does not exist, is empty, or holds an earlier demonstration, which is replaced.
        config: another recipe than `recipes.demo`; its seed decides the scenes, too.
        scenes: numbers of scenes.
        device: device to train on, see `Detector`.
        reporter: receives messages and the progress.

    Returns:
        Metrics and summary, or None if Ctrl-C ended the training.

    Raises:
        OutputError: the folder holds something else or cannot be written.
    """
    # Draw. The unseen scenes have a seed of their own: they are neither trained on nor used to select the weights.
    reporter, config, scenes = reporter or Silence(), config or demo_recipe(), scenes or NumScenes()
    folder, started = Path(output), time.monotonic()
    _make_room(folder)
    data = draw_scenes(folder / "scenes", scenes.train, scenes.val, seed=config.run.seed)
    unseen = draw_scenes(folder / "unseen", 0, scenes.unseen, seed=config.run.seed + 1)
    reporter.say(f"drew {scenes.train + scenes.val + scenes.unseen} scenes in {duration(time.monotonic() - started)}")
    # Train.
    run = train(config, data=data, output=folder / "run", device=device, on_interrupt="return", reporter=reporter)
    if run.interrupted:
        return None
    # Evaluate the best weights as a user would: from the file.
    detector = Detector.load(run.folder / "best.safetensors", device=device)
    dataset = open_dataset(unseen, split="val")
    report = evaluate(detector, dataset, num_workers=config.data.num_workers, reporter=reporter)
    _draw_pictures(folder, report)
    summary = _summary(folder, run, report, scenes, time.monotonic() - started)
    write_text(folder / "summary.md", summary)
    return Demonstration(folder=folder, metrics=report.metrics, summary=summary)


def _make_room(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        present = {path.name for path in folder.iterdir()}
        if present - _OWN or (present and "scenes" not in present):
            foreign = sorted(present - _OWN)[:3] or sorted(present)[:3]
            raise OutputError(
                f"{folder} holds {', '.join(foreign)}, which no demonstration has written; name another --output"
            )
        for name in present:
            path = folder / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    except OSError as error:
        raise OutputError(f"cannot write to {folder}: {error.strerror}") from error


def _draw_pictures(folder: Path, report: EvaluationReport) -> None:
    """Draw the first unseen scenes, one by one and on one sheet: detections in colour, true boxes in dashed white."""
    drawn: list[Image.Image] = []
    samples = report.dataset.samples[:_NUM_PICTURES]
    for sample, found in zip(samples, report.detections, strict=False):
        drawn.append(
            draw_detections(
                read_image(sample),
                found,
                report.dataset.classes,
                threshold=_THRESHOLD,
                ground_truth=sample,
                scale=_SCALE,
            )
        )
    try:
        (folder / "pictures").mkdir()
        for sample, picture in zip(samples, drawn, strict=True):
            picture.save(folder / "pictures" / sample.path.name, quality=92)
        contact_sheet(drawn, _COLUMNS).save(folder / "contact_sheet.jpg", quality=92)
    except OSError as error:
        raise OutputError(f"cannot write the pictures to {folder}: {error.strerror}") from error


def _summary(folder: Path, run: Run, report: EvaluationReport, scenes: NumScenes, seconds: float) -> str:
    metrics, model = report.metrics, run.config.model
    best = run.folder / "best.safetensors"
    rows = [
        f"| {name} | {percent(one.ap)} | {percent(one.ap50)} | {percent(one.ar)} |"
        for name, one in metrics.per_class.items()
    ]
    return "\n".join(
        [
            "# Demonstration of deformable-detr",
            "",
            f"Drew {scenes.train} training scenes, {scenes.val} validation scenes and {scenes.unseen} test scenes.",
            f"Trained a model from random weights ({model.describe()}) for {run.epochs_completed} epochs, and kept the",
            f"best weights, those of epoch {run.best_epoch}. Evaluated them on the {scenes.unseen} test scenes, which",
            f"were not used in training. It took {duration(seconds)} in all.",
            "",
            f"**AP50 {percent(metrics.ap50)}, AP {percent(metrics.ap)}** (COCO's definitions, percent); "
            f"AP of small objects {percent(metrics.ap_small)}, medium {percent(metrics.ap_medium)}, "
            f"large {percent(metrics.ap_large)}.",
            "",
            "| class | AP | AP50 | AR |",
            "|---|---|---|---|",
            *rows,
            "",
            f"- `contact_sheet.jpg`, `pictures/`: test scenes; detections with a score of {_THRESHOLD} or more in",
            "  colour, true boxes in dashed white",
            *_report_line(folder, run),
            "- `run/`: the run folder, as `ddetr train` leaves it",
            "",
            "Next:",
            "",
            "```sh",
            f"ddetr predict {best} {folder / 'unseen'} --output pictures",
            f"ddetr eval {best} --data {folder / 'unseen'}",
            "ddetr check-data YOUR_PHOTOS",
            "ddetr train --data YOUR_PHOTOS",
            "```",
            "",
        ]
    )


def _report_line(folder: Path, run: Run) -> list[str]:
    """Line of the summary about the report; none if there is no report, for a reason that the training has said."""
    if run.report is None:
        return []
    return [f"- `{run.report.relative_to(folder)}`: the run on one page: curves, accuracy and the worst mistakes"]
