"""Writing of report.html from a run folder; the page says what is missing."""

import logging
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from deformable_detr.core.config import flat_settings
from deformable_detr.core.errors import CheckpointError, ConfigError, DataError, DeformableDetrError, OutputError
from deformable_detr.core.files import check_output_file, write_text
from deformable_detr.core.format_names import FormatName
from deformable_detr.core.progress import Reporter, Silence, duration, percent
from deformable_detr.core.reading import read_json
from deformable_detr.data.dataset import DetectionDataset
from deformable_detr.data.splits import TrainingData, open_training_data
from deformable_detr.data.statistics import statistics_of
from deformable_detr.evaluation.analysis import Analysis, analyse
from deformable_detr.evaluation.evaluate import EvaluationReport, counted_detections, evaluate
from deformable_detr.inference.detector import Detector
from deformable_detr.report import sections
from deformable_detr.report.history import History, history_of
from deformable_detr.report.looks import looks_of
from deformable_detr.report.mistakes import worst_examples
from deformable_detr.report.page import Section, page
from deformable_detr.runs.config import TrainConfig, settled
from deformable_detr.runs.config_file import from_json, to_json
from deformable_detr.runs.folder import RunFolder
from deformable_detr.runs.places import DataPlaces, read_places
from deformable_detr.runs.progress import saved_run_progress
from deformable_detr.weights import checkpoint as checkpoints


class _Findings(NamedTuple):
    """Findings about a run, as far as its files are there; None stands for a part that is missing."""

    config: TrainConfig | None
    history: History
    data: TrainingData | None
    weights: Path | None
    """File of the weights that are evaluated."""
    detector: Detector | None
    """Detector of these weights; None if nothing is evaluated."""
    evaluation: EvaluationReport | None
    notes: list[str]
    """Remarks for people on what is missing, and why."""


def write_report(
    run: str | Path,
    *,
    data: str | Path | DetectionDataset | None = None,
    val_data: str | Path | DetectionDataset | None = None,
    output: str | Path | None = None,
    format: FormatName | None = None,
    model: nn.Module | None = None,
    device: str = "auto",
    reporter: Reporter | None = None,
) -> Path:
    """Write the report of a run: one page on how it went, how good the detector is, and what it gets wrong.

    The weights are evaluated on the validation images: best.safetensors, or last.safetensors if there is no other.
    Parts that cannot be made, for example because the images have moved, are left out, and the page says so.

    Args:
        run: the run folder.
        data: new path of the data set, or an open data set; the path that the run was given if left out.
        val_data: validation images, as a path or an open data set, if the run was given them separately.
        output: file of the page; report.html in the run folder if left out.
        format: format of the data set; that of the run if left out.
        model: a network of the same class, if the run trained a network of your own.
        device: device to evaluate on; "auto" is a CUDA device if there is one, else the CPU.
        reporter: receives messages and the progress.

    Returns:
        Path of the page.

    Raises:
        OutputError: there is no such run, or the page cannot be written.
        DataError: `data` or `val_data` was given and cannot be used, or the metrics are those of no run.
        BackendError: the device is not available.
    """
    reporter, folder = reporter or Silence(), RunFolder(Path(run))
    if not folder.path.is_dir():
        raise OutputError(f"no such run folder: {run}")
    if not any(path.exists() for path in (folder.config, folder.metrics, folder.best, folder.last)):
        raise OutputError(f"{run} is not a run folder: it has none of config.json, metrics.jsonl and best.safetensors")
    check_output_file(folder.report if output is None else Path(output))
    notes: list[str] = []
    config = _config(folder, notes)
    opened = _open(folder, config, data, val_data, format, notes)
    if opened is not None and opened.num_bad_images:
        notes.append(f"{opened.num_bad_images} images are missing or are not of the size that the labels say.")
    return _write(folder, config, opened, notes, output, model=model, device=device, reporter=reporter)


def try_to_report(
    folder: RunFolder, data: TrainingData, *, model: nn.Module | None, device: str, reporter: Reporter
) -> Path | None:
    """Write the report at the end of a training; no error here may end a training that has succeeded.

    Args:
        folder: the run folder.
        data: the data of the run.
        model: a network of the same class, if the run trained a network of one's own.
        device: device to evaluate on.
        reporter: receives messages and the progress, and the reason if there is no report.

    Returns:
        Path of the page, or None if there is no report.
    """
    notes: list[str] = []
    try:
        return _write(folder, _config(folder, notes), data, notes, None, model=model, device=device, reporter=reporter)
    except KeyboardInterrupt:
        reason = "stopped"
    except Exception as error:
        logging.getLogger(__name__).debug("the report failed", exc_info=True)
        reason = str(error) if isinstance(error, DeformableDetrError) else f"{type(error).__name__}: {error}"
    reporter.say(f"no report: {reason}; `ddetr report {folder.path}` tries again")
    return None


def _config(folder: RunFolder, notes: list[str]) -> TrainConfig | None:
    try:
        return from_json(read_json(folder.config), str(folder.config))
    except ConfigError as error:
        notes.append(f"The settings of this run are unknown: {error}")
        return None


def _open(
    folder: RunFolder,
    config: TrainConfig | None,
    data: str | Path | DetectionDataset | None,
    val_data: str | Path | DetectionDataset | None,
    format: FormatName | None,
    notes: list[str],
) -> TrainingData | None:
    if config is None:
        notes.append("Without config.json the validation images of this run are unknown: nothing is evaluated.")
        return None
    try:
        places = read_places(folder.data) if data is None or folder.data.exists() else DataPlaces()
        where = places.path if data is None else data
        if where is None:
            raise ConfigError("the run was given its data in Python")
        return open_training_data(
            where,
            places.val_path if val_data is None else val_data,
            format=format or places.format,
            val_share=config.data.val_share,
            seed=config.run.seed,
            skip_bad_images=True,
            held_out=places.held_out,
        )
    except (DataError, ConfigError) as error:
        named = data is not None or val_data is not None
        if named and not isinstance(error, ConfigError):
            raise
        notes.append(
            f"The data set could not be opened, so nothing is evaluated: {error}. "
            f"If it has moved: ddetr report {folder.path} --data FOLDER"
        )
        return None


def _write(
    folder: RunFolder,
    config: TrainConfig | None,
    data: TrainingData | None,
    notes: list[str],
    output: str | Path | None,
    *,
    model: nn.Module | None,
    device: str,
    reporter: Reporter,
) -> Path:
    # Training: how it went, and whether it is finished.
    records = folder.records()
    history = history_of(records)
    if strange := records.describe():
        notes.append(f"{strange}.")
    if not history.steps and not history.epochs:
        notes.append("There is no metrics.jsonl with records in it: nothing is known about the training.")
    completed = max((row["epoch"] for row in history.epochs), default=0)
    if config is not None and completed < (epochs := settled(config.schedule.epochs)):
        notes.append(_not_finished(folder, config, completed, epochs))
    # Evaluation: the best weights, which are the ones to use; without them the newest.
    weights = next((path for path in (folder.best, folder.last) if path.is_file()), None)
    detector, evaluation = None, None
    if weights is None:
        notes.append("There are no weights in the run folder: nothing is evaluated.")
    elif data is not None:
        if weights == folder.last:
            notes.append("The run has no best.safetensors yet: this page is about last.safetensors.")
        detector, evaluation = _evaluate(weights, data, config, notes, model=model, device=device, reporter=reporter)
    # The page. The notes come last because each of the steps before may add one.
    findings = _Findings(config, history, data, weights, detector, evaluation, notes)
    shown = _sections(findings, reporter)
    name = folder.path.resolve().name
    text = page(f"Run {name}", _subtitle(findings), notes, shown)
    target = Path(output) if output is not None else folder.report
    # Names of files may hold bytes that are no valid Unicode; they are written as escapes.
    write_text(target, text, errors="backslashreplace")
    for note in notes:
        reporter.say(f"report: {note}")
    return target


def _not_finished(folder: RunFolder, config: TrainConfig, completed: int, epochs: int) -> str:
    try:
        saved = checkpoints.load(folder.last, training=True)
    except CheckpointError:
        saved = None
    if (
        saved is not None
        and saved.training is not None
        and saved_run_progress(saved.training.progress, folder.last, config).stopped_early
    ):
        return (
            f"This run stopped early (patience) after {completed} of {epochs} epochs. "
            f"To continue it anyway: ddetr train --resume {folder.path} --epochs {epochs}"
        )
    return (
        f"This run is not finished: {completed} of {epochs} epochs are complete. "
        f"To continue it: ddetr train --resume {folder.path}"
    )


def _evaluate(
    weights: Path,
    data: TrainingData,
    config: TrainConfig | None,
    notes: list[str],
    *,
    model: nn.Module | None,
    device: str,
    reporter: Reporter,
) -> tuple[Detector, EvaluationReport] | tuple[None, None]:
    try:
        detector = Detector.load(weights, model=model, device=device)
        best_by = "ap" if config is None else config.checkpoints.best_by
        evaluation = evaluate(
            detector,
            data.val,
            max_detections=counted_detections(detector.model, data.val, best_by),
            batch_size=1 if config is None else min(4, settled(config.run.batch_size)),
            num_workers=config.data.num_workers if config is not None else 0,
            skip_bad_images=True,
            reporter=reporter,
        )
    except (DataError, CheckpointError) as error:
        notes.append(f"Nothing could be evaluated: {error}")
        return None, None
    except torch.OutOfMemoryError:
        notes.append(f"Nothing could be evaluated: there is not enough memory on {device}; try another --device.")
        return None, None
    if evaluation.skipped:
        first = next(iter(evaluation.skipped.values()))
        notes.append(f"{len(evaluation.skipped)} of {len(data.val)} validation images are left out; the first: {first}")
    if not evaluation.dataset.num_objects:
        notes.append("There are no objects in the validation images: how good this detector is remains unknown.")
    return detector, evaluation


def _sections(findings: _Findings, reporter: Reporter) -> list[Section]:
    config, evaluation, data = findings.config, findings.evaluation, findings.data
    analysis = None if evaluation is None else analyse(evaluation)
    # What the run folder alone tells.
    shown = [sections.at_a_glance(_facts(findings, analysis)), sections.training(findings.history)]
    # What an evaluation tells.
    if evaluation is not None and analysis is not None:
        examples = worst_examples(
            analysis,
            evaluation.detections,
            evaluation.dataset,
            on_progress=lambda done, total: reporter.update("drawing mistakes", done, total),
        )
        names = list(evaluation.metrics.per_class)
        shown += [
            sections.accuracy(evaluation, analysis),
            sections.thresholds(analysis),
            sections.confusion(analysis, names),
            sections.errors(analysis),
            sections.calibration(analysis),
            sections.mistakes(examples, analysis.threshold),
        ]
        if findings.detector is not None:
            shown.append(
                sections.looks(looks_of(findings.detector, analysis, evaluation.detections, evaluation.dataset))
            )
    # What the run was made from, for those who want to repeat it.
    if data is not None:
        splits = {"training": statistics_of(data.train), "validation": statistics_of(data.val)}
        shown.append(sections.data(splits, data.origin))
    settings = {} if config is None else flat_settings(to_json(config))
    shown.append(sections.configuration(settings, _versions(findings.weights)))
    return shown


def _facts(findings: _Findings, analysis: Analysis | None) -> list[tuple[str, str]]:
    config, history, data = findings.config, findings.history, findings.data
    facts: list[tuple[str, str]] = []
    best = history.best() if config is None else history.best(config.checkpoints.best_by)
    # Accuracy: as just evaluated, else as it was in the best epoch.
    twelve: dict[str, Any] | None = None
    if findings.evaluation is not None:
        twelve = findings.evaluation.metrics.twelve()
    elif best is not None:
        twelve = best["val"]
    if twelve is not None:
        facts += [(label, percent(twelve.get(name, -1.0))) for name, label in (("ap", "AP, %"), ("ap50", "AP50, %"))]
    if analysis is not None and analysis.overall.num_objects:
        facts += [("best F1", f"{analysis.overall.f1.max():.2f}"), ("at threshold", f"{analysis.threshold:.2f}")]
    # Training: how far it is, and how long it took.
    completed = max((row["epoch"] for row in history.epochs), default=0)
    planned = "" if config is None else f" of {config.schedule.epochs}"
    facts.append(("epochs", f"{completed}{planned}"))
    if best is not None:
        facts.append(("best epoch", str(best["epoch"])))
    if history.seconds:
        facts.append(("time, h:m:s" if history.seconds >= 3600 else "time, m:s", duration(history.seconds)))
    # Data.
    if data is not None:
        facts += [
            ("training images", str(len(data.train))),
            ("validation images", str(len(data.val))),
            ("classes", str(len(data.train.classes))),
        ]
    return facts


def _subtitle(findings: _Findings) -> str:
    parts = []
    if findings.config is not None:
        parts.append(f"recipe {findings.config.name}, {findings.config.model.describe()}")
    if findings.data is not None:
        parts.append(findings.data.train.source)
    if findings.weights is not None:
        parts.append(f"weights: {findings.weights.name}")
    return "; ".join(parts)


def _versions(weights: Path | None) -> list[tuple[str, str]]:
    """Provenance of a checkpoint, as names and texts; empty if it has none."""
    if weights is None:
        return []
    try:
        provenance = checkpoints.load(weights).provenance
    except CheckpointError:
        return []
    return [(name, text) for name, text in provenance.items() if text]
