"""Command `ddetr check-data`: check a data set before training on it."""

import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deformable_detr.cli.lines import tell
from deformable_detr.core.errors import DataError, counted
from deformable_detr.core.format_names import FormatName
from deformable_detr.core.short_text import LONGEST_LINE, LONGEST_NAME, printable

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

    from deformable_detr.data.check import DatasetReport
    from deformable_detr.data.dataset import DetectionDataset, Problem
    from deformable_detr.data.statistics import SplitStatistics
    from deformable_detr.runs.config import TrainConfig


def check_data(
    path: Annotated[Path, typer.Argument(help="A folder, an annotation file or a zip archive.")],
    format: Annotated[
        FormatName | None,
        typer.Option(help="Format of the data set; recognised automatically if left out."),
    ] = None,
    decode: Annotated[
        bool, typer.Option("--decode/--no-decode", help="Decode every image to find damaged ones.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON to standard output.")] = False,
    augmented: Annotated[int | None, typer.Option(min=1, help="Also draw this many augmented training images.")] = None,
    augment: Annotated[
        str | None,
        typer.Option(help="With --augmented: paper, light, strong or aerial.", metavar="NAME"),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(help="Recipe or config.json to check for, and of --augmented; small if left out."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="With --augmented: file of the sheet; augmented.png if left out.")
    ] = None,
) -> None:
    """Check a data set before training on it: what is in it, and what is wrong with it.

    The exit code is 1 if something would stop training.
    """
    if augmented is None and (augment or output):
        raise typer.BadParameter("--augment and --output need --augmented N, such as --augmented 12")
    import json

    from deformable_detr.core.files import check_output_file
    from deformable_detr.core.progress import shown_progress, shown_wait
    from deformable_detr.data.archives import unpack
    from deformable_detr.data.check import check_dataset

    picture = output or Path("augmented.png")
    config = None
    if augmented is not None or recipe is not None:
        config = _config(recipe or "small", augment)
    if augmented is not None:
        check_output_file(picture)
    with shown_progress("unpacking, MB") as on_progress:
        unpack(path, on_progress=on_progress)
    with ExitStack() as reading:
        reading.enter_context(shown_wait(f"reading the annotations of {path}"))
        with shown_progress("decoding images") as on_progress:
            report = check_dataset(
                path,
                format=format,
                decode=decode,
                num_queries=partial(_queries, config),
                model=f"recipe {'small' if config is None else config.name}",
                on_progress=on_progress,
                on_read=reading.close,
            )
    if as_json:
        typer.echo(json.dumps(report.to_json(), ensure_ascii=True))
    else:
        from rich.console import Console

        Console(stderr=True).print(render(report))
    if not report.ok:
        if augmented is not None:
            tell("no picture: this data set cannot be used for training as it is")
        raise typer.Exit(1)
    if augmented is not None and config is not None:
        from deformable_detr.training.preview import save_preview

        with shown_progress("drawing images") as on_progress:
            save_preview(picture, path, config, augmented, format=format, on_progress=on_progress)
        tell(f"{augmented} training images after augmentation: {picture}")


def _queries(config: "TrainConfig | None", train: "DetectionDataset", val: "DetectionDataset | None") -> int | None:
    """Number of queries that a recipe, or `small`, takes for these splits; to import it takes long.

    None if a training would refuse the splits, or if the number is that of weights, which only a training is given.
    """
    from deformable_detr.data.crowding import most_objects
    from deformable_detr.data.splits import pair
    from deformable_detr.models.interface import num_queries_of
    from deformable_detr.runs.query_counts import settled_queries
    from deformable_detr.runs.recipes import small

    config = config or small()
    if config.run.start == "weights":
        return None
    try:  # Where there is no validation split, images are held out.
        kept = pair(train, val, val_share=config.data.val_share, seed=config.run.seed).train
    except DataError:  # The report says it, as a problem that stops training.
        return None
    return num_queries_of(settled_queries(config, most_objects(kept)).config.model)


def _config(recipe: str, augment: str | None) -> "TrainConfig":
    from deformable_detr.runs.recipes import find_recipe, with_augmentation

    config = find_recipe(recipe)
    return config if augment is None else with_augmentation(config, augment)


def render(report: "DatasetReport", *, examples: int = 5) -> "Group":
    """Tables of the report for a terminal, to print with `rich`; `examples` limits those of each kind of problem."""
    from rich.console import Group
    from rich.text import Text

    # Without a split that could be read nothing is known about classes, and tables would be empty.
    classes = f", {counted(len(report.classes), 'class', 'classes')}" if report.splits else ""
    title = f"{report.path} ({report.format.upper()}{classes})"
    parts: list[Any] = [Text(printable(title, LONGEST_LINE), style="bold")]
    if report.splits:
        parts += [_split_table(report), _class_table(report)]
    if report.num_queries is not None:
        parts.append(Text(printable(f"Queries: {report.model} would train with {report.num_queries}.", LONGEST_LINE)))
    in_table = [problem for problem in report.problems if problem not in report.warnings]
    if in_table:
        parts.append(_problem_table(in_table, report.path, examples))
    unchecked = "" if report.images_decoded else " Images were not decoded."
    for problem in report.warnings:
        parts.append(Text(f"Warning, {problem.where}: {problem.message}.", style="bold yellow"))
    if not report.ok:
        fatal = sum(problem.fatal for problem in report.problems)
        stopping = counted(fatal, "problem")
        parts.append(Text(f"Not usable as it is: {stopping} would stop training.{unchecked}", style="red"))
    elif report.warnings:
        warnings = counted(len(report.warnings), "warning")
        remarks = f", {counted(len(in_table), 'remark')}" if in_table else ""
        parts.append(Text(f"Nothing stops training, but see {warnings} above{remarks}.{unchecked}", style="yellow"))
    else:
        remarks = counted(len(report.problems), "remark") + ", nothing that stops training"
        parts.append(Text(f"OK: {remarks if report.problems else 'no problems'}.{unchecked}", style="green"))
    return Group(*parts)


def _split_table(report: "DatasetReport") -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(title="Splits", title_justify="left")
    table.add_column("")
    for name in report.splits:
        table.add_column(Text(printable(name, LONGEST_NAME)), justify="right")
    rows: list[tuple[str, Callable[[SplitStatistics], str]]] = [
        ("images", lambda s: str(s.images)),
        ("  without objects", lambda s: str(s.images_without_objects)),
        ("  width, px", lambda s: f"{s.smallest_wh[0]} .. {s.largest_wh[0]}"),
        ("  height, px", lambda s: f"{s.smallest_wh[1]} .. {s.largest_wh[1]}"),
        ("boxes", lambda s: str(s.boxes)),
        ("  per image: fewest, median, most", lambda s: "  ".join(f"{value:g}" for value in s.boxes_per_image)),
        ("  small, below 32 x 32 px", lambda s: str(s.small)),
        ("  medium", lambda s: str(s.medium)),
        ("  large, from 96 x 96 px", lambda s: str(s.large)),
        ("crowd boxes", lambda s: str(s.crowd_boxes)),
    ]
    for label, value in rows:
        table.add_row(label, *(value(summary) for summary in report.splits.values()))
    return table


def _class_table(report: "DatasetReport") -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(title="Boxes per class", title_justify="left")
    table.add_column("class")
    for name in report.splits:
        table.add_column(Text(printable(name, LONGEST_NAME)), justify="right")
    for name in dict.fromkeys(name for summary in report.splits.values() for name in summary.boxes_per_class):
        table.add_row(
            Text(printable(name, LONGEST_NAME)),
            *(str(summary.boxes_per_class.get(name, 0)) for summary in report.splits.values()),
        )
    return table


def _problem_table(problems: "Sequence[Problem]", path: str, examples: int) -> "Table":
    """Table with a row for each kind of problem, those that stop training first."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title="Problems", title_justify="left")
    table.add_column("kind")
    table.add_column("count", justify="right")
    table.add_column("stops training")
    table.add_column("where and what", overflow="fold")
    folder = os.path.join(os.path.abspath(path), "")
    groups: dict[tuple[bool, str], list[Problem]] = defaultdict(list)
    for problem in problems:
        groups[not problem.fatal, problem.kind].append(problem)
    for (harmless, kind), group in sorted(groups.items()):
        style = "" if harmless else "red"
        lines = [
            printable(f"{problem.where}: {problem.message}".replace(folder, ""), LONGEST_LINE)
            for problem in group[:examples]
        ]
        if len(group) > examples:
            lines.append(f"... and {len(group) - examples} more; --json lists all")
        label = Text(kind.replace("_", " "), style=style)
        table.add_row(label, str(len(group)), "no" if harmless else "YES", Text("\n".join(lines), style=style))
    return table
