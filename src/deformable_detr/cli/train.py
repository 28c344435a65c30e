"""`ddetr train`: from command line options to one call of `train` or `resume`."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from deformable_detr.runs.config import PrecisionName, TrainConfig
    from deformable_detr.training.finetune import Source
    from deformable_detr.training.train import Run


def train(
    recipe: Annotated[
        str | None,
        typer.Argument(
            help="Name of a recipe, or a config.json of an earlier run; small if left out, with --weights finetune.",
            metavar="RECIPE",
        ),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Data set: a folder, a COCO json or a YOLO data.yaml.")] = None,
    output: Annotated[Path | None, typer.Option(help="Run folder; a new one in runs/ if left out.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Times every image is seen.")] = None,
    batch_size: Annotated[
        str | None,
        typer.Option(
            help="Images per step; the learning rate follows it. auto is as many as memory takes.", metavar="N|auto"
        ),
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate, used exactly as given.")] = None,
    image_size: Annotated[int | None, typer.Option(min=1, help="Short side of the images, in pixels.")] = None,
    augment: Annotated[
        str | None, typer.Option(help="How images are varied: paper, light, strong or aerial.", metavar="NAME")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    devices: Annotated[
        int | None, typer.Option(min=1, help="Processes that train together, one for each GPU.", metavar="N")
    ] = None,
    precision: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"] | None,
        typer.Option(help="What the network computes with; auto is half precision on GPUs only."),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Decides everything random.")] = None,
    workers: Annotated[int | None, typer.Option(min=0, help="Processes that read images.")] = None,
    format: Annotated[
        Literal["coco", "yolo", "voc"] | None, typer.Option(help="Of the data set; recognised by itself if left out.")
    ] = None,
    backbone: Annotated[str | None, typer.Option(help="Any convolutional network of timm, by timm's name.")] = None,
    backbone_weights: Annotated[
        str | None, typer.Option(help="hub (timm's own), a .safetensors or .pth file, or none.")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="Start from a whole detector, with its structure: a file, an address, or OWNER/NAME."),
    ] = None,
    freeze: Annotated[
        list[str] | None,
        typer.Option(
            help="Keep a part as it is: backbone, projections, encoder, queries, decoder, heads or all_but_heads; "
            "repeatable."
        ),
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with the run in this folder.", metavar="RUN")] = None,
    patience: Annotated[
        int | None, typer.Option(min=0, help="End after so many epochs without a better result; 0 = never.")
    ] = None,
    save_every: Annotated[
        float | None, typer.Option(min=0, help="Minutes between checkpoints within an epoch; 0 = only after it.")
    ] = None,
    skip_bad_images: Annotated[
        bool, typer.Option("--skip-bad-images", help="Leave out and count images that cannot be read.")
    ] = False,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="A.B=VALUE", help="Any other setting, as config.json names them; repeatable."),
    ] = None,
    log: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Where figures go, too: tensorboard, wandb, mlflow or none; repeatable. "
            "TensorBoard, where it is installed, if left out.",
        ),
    ] = None,
    report: Annotated[bool, typer.Option(help="Write report.html at the end.")] = True,
) -> None:
    """Train a detector on your own images.

    `ddetr train --data FOLDER` is enough: classes come from the data, the learning rate follows the batch, the number
    of epochs the number of images. The best weights end up in RUN/best.safetensors.
    """
    changes = {
        "RECIPE": recipe,
        "--output": output,
        "--batch-size": batch_size,
        "--lr": lr,
        "--image-size": image_size,
        "--precision": precision,
        "--augment": augment,
        "--seed": seed,
        "--workers": workers,
        "--format": format,
        "--backbone": backbone,
        "--backbone-weights": backbone_weights,
        "--weights": weights,
        "--freeze": freeze or None,
        "--patience": patience,
        "--save-every": save_every,
        "--skip-bad-images": skip_bad_images or None,
        "--set": set_ or None,
    }
    given = [name for name, value in changes.items() if value is not None]
    if resume is not None and given:
        raise typer.BadParameter(f"a run is resumed with its own settings; leave out {', '.join(given)}")
    if weights is not None and (backbone is not None or backbone_weights is not None):
        raise typer.BadParameter("--weights brings the whole network; leave out --backbone and --backbone-weights")
    if resume is None and data is None:
        raise typer.BadParameter("say where the images are: --data FOLDER")
    if log is not None and "none" in log and len(log) > 1:
        raise typer.BadParameter("--log none leaves no room for another --log")
    services = None if log is None else [name for name in log if name != "none"]

    from deformable_detr.core import distributed as ranks
    from deformable_detr.core.errors import ConfigError
    from deformable_detr.core.progress import TerminalReporter
    from deformable_detr.training import finetune as transfer
    from deformable_detr.training import train as training

    with TerminalReporter() as reporter:
        source = None if weights is None else transfer.read_source(weights, reporter=reporter)
        config = (
            None
            if resume is not None
            else chosen_config(
                recipe or ("small" if source is None else "finetune"),
                source=source,
                epochs=epochs,
                batch_size=_batch_size(batch_size),
                lr=lr,
                image_size=image_size,
                precision=precision,
                augment=augment,
                seed=seed,
                workers=workers,
                backbone=backbone,
                backbone_weights=backbone_weights,
                freeze=freeze or [],
                patience=patience,
                save_every=save_every,
                skip_bad_images=skip_bad_images,
                settings=set_ or [],
            )
        )
    if devices is not None and ranks.started_by_torchrun():
        ranks.check_started(devices)
    elif devices is not None:
        if devices > 1 and config is not None and config.batch_size_by == "memory":
            raise ConfigError(f"--batch-size auto is for one process, and --devices asks for {devices}; give a number")
        # What is wrong with the settings has been said, once.
        raise typer.Exit(ranks.start(devices, sys.argv[1:]))
    with TerminalReporter() as reporter:
        if resume is not None:
            run = training.resume(
                resume,
                epochs=epochs,
                data=data,
                device=device,
                log=services,
                report=report,
                reporter=reporter,
            )
        else:
            assert data is not None
            assert config is not None
            run = training.train(
                config,
                data=data,
                output=output,
                format=format,
                weights=None if source is None else transfer.changed(source, config),
                device=device,
                log=services,
                report=report,
                reporter=reporter,
            )
    _conclude(run)


def _batch_size(text: str | None) -> int | Literal["auto"] | None:
    if text is None:
        return None
    if text == "auto":
        return "auto"
    if not text.isdecimal() or int(text) < 1:
        raise typer.BadParameter(f"--batch-size is {text!r}; it must be a number of at least 1, or auto")
    return int(text)


def _conclude(run: "Run") -> None:
    """Where it is and what to do next for people; the same as one JSON line for machines."""
    from deformable_detr.core.distributed import is_first
    from deformable_detr.core.progress import percent
    from deformable_detr.weights.checkpoint import BEST_NAME, LAST_NAME

    code = (143 if run.terminated else 130) if run.interrupted else 0
    if not is_first():
        raise typer.Exit(code)
    best, last = run.folder / BEST_NAME, run.folder / LAST_NAME
    if run.best_epoch is not None:
        ap, ap50 = percent(run.best["ap"]), percent(run.best["ap50"])
        typer.echo(f"best: AP {ap}, AP50 {ap50} in epoch {run.best_epoch}: {best}", err=True)
    if run.interrupted:
        typer.echo(f"stopped; the weights so far are in {last}", err=True)
        typer.echo(f"go on with: ddetr train --resume {run.folder}", err=True)
    else:
        if run.report is not None:
            typer.echo(f"look at it: {run.report}", err=True)
        typer.echo(f"try it: ddetr predict {best} IMAGES --output pictures", err=True)
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
    typer.echo(json.dumps(record))
    if code:
        raise typer.Exit(code)


def chosen_config(
    recipe: str,
    *,
    epochs: int | None = None,
    batch_size: int | Literal["auto"] | None = None,
    lr: float | None = None,
    image_size: int | None = None,
    precision: "PrecisionName | None" = None,
    augment: str | None = None,
    seed: int | None = None,
    workers: int | None = None,
    backbone: str | None = None,
    backbone_weights: str | None = None,
    source: "Source | None" = None,
    freeze: Sequence[str] = (),
    patience: int | None = None,
    save_every: float | None = None,
    skip_bad_images: bool = False,
    settings: list[str],
) -> "TrainConfig":
    """A recipe, or the config of an earlier run, with what the command line changes; `settings` come last.

    With weights to start from, what they bring comes first.

    Raises:
        ConfigError: no such recipe or file, or a setting that does not exist or has the wrong type.
    """
    from dataclasses import replace

    from deformable_detr.core.config import apply_overrides
    from deformable_detr.core.errors import ConfigError
    from deformable_detr.runs.recipes import find_recipe, with_augmentation, with_backbone, with_image_size
    from deformable_detr.training.finetune import settle

    config = find_recipe(recipe)
    if source is not None:
        config = settle(config, source)
    if image_size is not None:
        config = with_image_size(config, image_size)
    if augment is not None:
        config = with_augmentation(config, augment)
    if backbone is not None or backbone_weights is not None:
        config = with_backbone(config, name=backbone, weights=backbone_weights)
    if lr is not None:
        config = replace(config, optimizer=replace(config.optimizer, lr=lr, lr_batch_size=None))
    config = replace(
        config,
        epochs=config.epochs if epochs is None else epochs,
        batch_size=batch_size if isinstance(batch_size, int) else config.batch_size,
        batch_size_by="memory" if batch_size == "auto" else config.batch_size_by,
        precision=config.precision if precision is None else precision,
        seed=config.seed if seed is None else seed,
        num_workers=config.num_workers if workers is None else workers,
        patience=config.patience if patience is None else patience,
        save_every=config.save_every if save_every is None else save_every,
        skip_bad_images=config.skip_bad_images or skip_bad_images,
        freeze=tuple(freeze) or config.freeze,
    )
    if any(setting.split("=")[0].strip() == "model.num_classes" for setting in settings):
        raise ConfigError("model.num_classes comes from the data and cannot be set")
    return apply_overrides(config, settings)
