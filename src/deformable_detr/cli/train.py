"""Command `ddetr train`: train a detector, or resume a run."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from deformable_detr.cli.lines import give_up, tell
from deformable_detr.core.format_names import FormatName

if TYPE_CHECKING:
    from deformable_detr.data.splits import TrainingSplits
    from deformable_detr.runs.config import TrainConfig
    from deformable_detr.training.finetune import Source
    from deformable_detr.training.train import Run

# Options that are settings of a run, with their full names as in config.json and --set.
_MOST_DIGITS = 18
_SETTINGS = {
    "epochs": "schedule.epochs",
    "batch_size": "run.batch_size",
    "lr": "optimizer.lr",
    "seed": "run.seed",
    "freeze": "run.freeze",
    "patience": "stopping.patience",
    "precision": "compute.precision",
    "save_every": "checkpoints.save_every",
    "workers": "data.num_workers",
    "skip_bad_images": "data.skip_bad_images",
}
# Options that may be given with --resume. All other settings of a resumed run are its own.
_FOR_RESUMING = {"resume", "epochs", "data", "device", "devices", "log", "report", "skip_bad_images"}
_DATA, _RECIPE, _WEIGHTS = "Data", "Settings of the run", "Weights to start from"
_MACHINE, _KEPT = "Where it runs", "What is kept and shown"


def train(
    recipe: Annotated[
        str | None,
        typer.Argument(
            help="A recipe, or the config.json of an earlier run; small if left out, or finetune with --weights.",
            metavar="RECIPE",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(rich_help_panel=_DATA, help="Data set: a folder, an annotation file or a zip archive."),
    ] = None,
    format: Annotated[
        FormatName | None,
        typer.Option(rich_help_panel=_DATA, help="Format of the data set; recognised automatically if left out."),
    ] = None,
    skip_bad_images: Annotated[
        bool,
        typer.Option(
            "--skip-bad-images", rich_help_panel=_DATA, help="Leave out and count images that cannot be read."
        ),
    ] = False,
    workers: Annotated[
        int | None, typer.Option(min=0, rich_help_panel=_DATA, help="Processes that read images.")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, rich_help_panel=_RECIPE, help="Number of times that every image is seen.")
    ] = None,
    batch_size: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=_RECIPE,
            help="Images per step, or auto: as many as fit into memory.",
            metavar="N|auto",
        ),
    ] = None,
    lr: Annotated[
        float | None, typer.Option(rich_help_panel=_RECIPE, help="Learning rate, used exactly as given.")
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(min=1, rich_help_panel=_RECIPE, help="Short side of the images, in pixels.")
    ] = None,
    augment: Annotated[
        str | None,
        typer.Option(rich_help_panel=_RECIPE, help="Augmentation: paper, light, strong or aerial.", metavar="NAME"),
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(
            min=0, rich_help_panel=_RECIPE, help="Evaluations in a row without a better AP that end the run; 0 = never."
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, rich_help_panel=_RECIPE, help="Seed of all random numbers.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            rich_help_panel=_RECIPE,
            metavar="NAME=VALUE",
            help="Any other setting, such as model.num_queries=200; repeatable.",
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=_WEIGHTS,
            help="Detector to start from: a file, a run folder, https address or OWNER/NAME.",
        ),
    ] = None,
    freeze: Annotated[
        list[str] | None,
        typer.Option(
            rich_help_panel=_WEIGHTS,
            help="Part not to train: backbone, projections, encoder, queries, decoder, heads, all_but_heads; "
            "repeatable.",
        ),
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(rich_help_panel=_WEIGHTS, help="Backbone: any convolutional network of timm, by its name."),
    ] = None,
    backbone_weights: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=_WEIGHTS, help="Its weights: hub (those of timm), a .safetensors or .pth file, or none."
        ),
    ] = None,
    device: Annotated[str, typer.Option(rich_help_panel=_MACHINE, help="auto, cpu, cuda or cuda:N.")] = "auto",
    devices: Annotated[
        int | None,
        typer.Option(
            min=1, rich_help_panel=_MACHINE, help="Processes that train together, one for each GPU.", metavar="N"
        ),
    ] = None,
    precision: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"] | None,
        typer.Option(rich_help_panel=_MACHINE, help="Number format; auto: half precision on GPUs, float32 on CPUs."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(rich_help_panel=_KEPT, help="Run folder; a new one in runs/ if left out.")
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(rich_help_panel=_KEPT, help="Run folder of the run to continue.", metavar="RUN"),
    ] = None,
    save_every: Annotated[
        float | None,
        typer.Option(
            min=0, rich_help_panel=_KEPT, help="Minutes between checkpoints; 0 = only at the end of an epoch."
        ),
    ] = None,
    log: Annotated[
        list[str] | None,
        typer.Option(
            rich_help_panel=_KEPT,
            metavar="NAME",
            help="Service to log to: tensorboard (default if installed), wandb, mlflow or none; repeatable.",
        ),
    ] = None,
    report: Annotated[bool, typer.Option(rich_help_panel=_KEPT, help="Write report.html at the end.")] = True,
) -> None:
    """Train a detector on your own images.

    `ddetr train --data FOLDER` is enough. The classes come from the data, and the number of epochs follows the number
    of images. The best weights are saved as best.safetensors in the run folder.
    """
    given = {name: value for name, value in locals().items() if not (value is None or value is False or value == [])}
    foreign = [_option(name) for name in given if name not in _FOR_RESUMING]
    if resume is not None and foreign:
        raise typer.BadParameter(f"a run is resumed with its own settings; leave out {', '.join(foreign)}")
    if weights is not None and (backbone is not None or backbone_weights is not None):
        raise typer.BadParameter("--weights brings the whole network; leave out --backbone and --backbone-weights")
    if resume is None and data is None:
        raise typer.BadParameter("say where the images are: --data FOLDER")
    if log is not None and "none" in log and len(log) > 1:
        raise typer.BadParameter("--log none cannot be combined with another --log")
    services = None if log is None else [name for name in log if name != "none"]
    settings = {full: given[name] for name, full in _SETTINGS.items() if name in given}
    if batch_size is not None:
        settings["run.batch_size"] = _batch_size(batch_size)
    # Before the imports that take seconds. What several processes train on, each of them reads by itself.
    read = None
    if data is not None and resume is None:
        read = _read(data, format, entirely=devices is None and "RANK" not in os.environ)

    from deformable_detr.core.progress import TerminalReporter
    from deformable_detr.data.archives import unpack
    from deformable_detr.training import finetune
    from deformable_detr.training import train as training

    source, config = None, None
    with TerminalReporter() as reporter:
        if data is not None:  # once, not in each of several processes
            unpack(data, on_progress=partial(reporter.update, "unpacking, MB"))
        if resume is None:
            source = None if weights is None else finetune.read_source(weights, reporter=reporter)
            config = chosen_config(
                recipe or ("small" if source is None else "finetune"),
                source=source,
                image_size=image_size,
                augment=augment,
                backbone=backbone,
                backbone_weights=backbone_weights,
                settings=settings,
                overrides=set_ or [],
            )
    if devices is not None:
        # What is wrong with the settings has been said, once.
        _start(devices, settings)
    with TerminalReporter() as reporter:
        if resume is not None:
            run = training.resume(
                resume,
                epochs=epochs,
                data=data,
                skip_bad_images=skip_bad_images,
                device=device,
                log=services,
                report=report,
                on_interrupt="return",
                reporter=reporter,
            )
        else:
            assert data is not None
            assert config is not None
            run = training.train(
                config,
                data=read or data,
                output=output,
                format=format,
                weights=None if source is None else finetune.changed(source, config),
                device=device,
                log=services,
                report=report,
                on_interrupt="return",
                reporter=reporter,
            )
    _conclude(run)


def chosen_config(
    recipe: str,
    *,
    source: "Source | None" = None,
    image_size: int | None = None,
    augment: str | None = None,
    backbone: str | None = None,
    backbone_weights: str | None = None,
    settings: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
) -> "TrainConfig":
    """Config of a recipe or of an earlier run, with the changes from the command line.

    Weights to start from are applied first, then options that change several settings at once, then single settings.

    Args:
        recipe: name of a recipe, or a config.json.
        source: weights to start from.
        image_size: shorter side of the images in pixels, see `with_image_size`.
        augment: name of a preset, see `with_augmentation`.
        backbone: name in timm, see `with_backbone`.
        backbone_weights: weights of the backbone, see `with_backbone`.
        settings: new values by full names.
        overrides: texts such as "model.num_queries=100".

    Raises:
        ConfigError: there is no such recipe or file, or a setting does not exist, has the wrong type or no effect.
    """
    from deformable_detr.core.config import parsed_overrides
    from deformable_detr.core.errors import ConfigError
    from deformable_detr.runs.recipes import find_recipe, with_augmentation, with_backbone, with_image_size
    from deformable_detr.training.finetune import start_from

    config = find_recipe(recipe)
    if source is not None:
        config = start_from(config, source)
    if image_size is not None:
        config = with_image_size(config, image_size)
    if augment is not None:
        config = with_augmentation(config, augment)
    if backbone is not None or backbone_weights is not None:
        config = with_backbone(config, name=backbone, weights=backbone_weights)
    changes = {**(settings or {}), **parsed_overrides(config, overrides)}
    if not {"model.num_classes", "num_classes"}.isdisjoint(changes):
        raise ConfigError("model.num_classes comes from the data and cannot be set")
    return config.with_settings(changes)


def _read(data: Path, format: FormatName | None, *, entirely: bool) -> "TrainingSplits | None":
    """Splits to train on and to validate with, without problems that no setting passes over; None if not read entirely.

    Raises:
        DataError: the data set cannot be used.
    """
    from deformable_detr.core.progress import shown_wait
    from deformable_detr.data.open import list_splits
    from deformable_detr.data.splits import check_has_training_split, read_splits

    if not entirely:
        check_has_training_split(data, list_splits(data, format=format))
        return None
    with shown_wait(f"reading the annotations of {data}"):
        splits = read_splits(data, format=format)
    splits.refuse_fatal(skip_bad_images=True)
    return splits


def _option(name: str) -> str:
    """Name of a parameter on the command line."""
    return "RECIPE" if name == "recipe" else f"--{name.strip('_').replace('_', '-')}"


def _batch_size(text: str) -> int | Literal["auto"]:
    if text == "auto":
        return "auto"
    if not text.isdecimal() or len(text) > _MOST_DIGITS or int(text) < 1:
        raise typer.BadParameter(f"--batch-size is {text!r}; it must be a number of at least 1, or auto")
    return int(text)


def _start(devices: int, settings: Mapping[str, Any]) -> None:
    """Start the training processes and exit with their exit code; return in a process that torchrun has started."""
    from deformable_detr.core import distributed
    from deformable_detr.core.errors import ConfigError

    if distributed.started_by_torchrun():
        distributed.check_started(devices)
        return
    if devices > 1 and settings.get("run.batch_size") == "auto":
        raise ConfigError(f"--batch-size auto is for one process, and --devices asks for {devices}; give a number")
    raise typer.Exit(distributed.start(devices, sys.argv[1:]))


def _conclude(run: "Run") -> None:
    """Print the result of a run: for people with the next commands, and for programs as one line of JSON."""
    from deformable_detr.core.distributed import is_first
    from deformable_detr.core.progress import percent
    from deformable_detr.weights.checkpoint import BEST_NAME, LAST_NAME

    code = (129 if run.hung_up else 143 if run.terminated else 130) if run.interrupted else 0
    if not is_first():
        raise typer.Exit(code)
    best, last = run.folder / BEST_NAME, run.folder / LAST_NAME
    if run.best_epoch is not None:
        ap, ap50 = percent(run.best["ap"]), percent(run.best["ap50"])
        tell(f"best: AP {ap}, AP50 {ap50} in epoch {run.best_epoch}: {best}")
    if run.interrupted:
        tell(f"stopped; the weights so far are in {last}")
        tell(f"to continue: ddetr train --resume {run.folder}")
    else:
        if run.report is not None:
            tell(f"report: {run.report}")
        tell(f"to use it: ddetr predict {best} IMAGES --output pictures")
    record = {
        "folder": str(run.folder),
        "epochs_completed": run.epochs_completed,
        "best_epoch": run.best_epoch,
        "best": run.best,
        "interrupted": run.interrupted,
        "stopped_early": run.stopped_early,
        "steps_left_out": run.num_not_finite,
        "report": None if run.report is None else str(run.report),
    }
    try:
        typer.echo(json.dumps(record))
    except OSError:
        if not code:
            raise
        give_up(sys.stdout)  # the terminal is closed, which is why the run was interrupted
    if code:
        raise typer.Exit(code)
