"""Task of the comparison: drawn scenes with objects of controlled sizes, as a COCO data set.

    python -m benchmarks.accuracy.convergence.scenes FOLDER
    python -m benchmarks.accuracy.convergence.scenes FOLDER --variant easy --train 800

All pictures have 160 x 128 pixels and one to five objects of three shapes that have any colour. COCO's bounds between
small, medium and large objects, 32^2 and 96^2 pixels, belong to pictures of 640 pixels; scaled to these they are 8^2
and 24^2. The variant "sizes" has objects of all three; "easy" has larger ones, fewer, on a plain background, each class
with hues of its own. Every number is an option. What was drawn is written to FOLDER/scenes.json.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.report import aligned, say
from deformable_detr.core.files import write_json
from deformable_detr.core.reading import read_json
from deformable_detr.data.dataset import DetectionDataset
from deformable_detr.data.open import open_dataset
from deformable_detr.data.synthetic import SceneStyle, draw_scenes

LONGER_SIDE = 160
"""Of the pictures, in pixels."""
COCO_LONGER_SIDE = 640
"""Of the pictures that COCO's bounds of areas belong to, in pixels."""
SCALE = COCO_LONGER_SIDE // LONGER_SIDE
BOUNDS = ((32 / SCALE) ** 2, (96 / SCALE) ** 2)
"""Areas in square pixels at which medium and large objects begin: 8^2 and 24^2."""
SIZES = ("small", "medium", "large")
_RECORD = "scenes.json"

_STYLE = SceneStyle(
    size_wh=(LONGER_SIDE, 128),
    classes=("disc", "triangle", "cross"),
    most_objects=5,
    smallest=0.055,
    largest=0.5,
    own_colors=False,
    same_size=True,
)
VARIANTS: dict[str, SceneStyle] = {
    # Diameters of 7 to 64 pixels.
    "sizes": _STYLE,
    # Diameters of 26 to 77 pixels.
    "easy": replace(_STYLE, smallest=0.2, largest=0.6, most_objects=3, own_colors=True, plain_background=True),
}


class Task(NamedTuple):
    """Data set of the comparison."""

    folder: Path
    record: dict[str, Any]
    """Content of scenes.json."""

    @property
    def short_side(self) -> int:
        """Shorter side of all pictures, in pixels."""
        return min(self.record["style"]["size_wh"])

    @property
    def long_side(self) -> int:
        """Longer side of all pictures, in pixels."""
        return max(self.record["style"]["size_wh"])

    @property
    def num_train(self) -> int:
        """Number of training pictures."""
        return int(self.record["images"]["train"])


def draw(folder: Path, style: SceneStyle, images: dict[str, int], seed: int) -> Task:
    """Draw the splits, once: the same settings again leave everything as it is.

    Raises:
        SystemExit: other scenes are there already.
    """
    record = {"seed": seed, "images": images, "style": json.loads(json.dumps(asdict(style)))}
    path = folder / _RECORD
    if path.exists():
        task = open_task(folder)
        if {name: task.record[name] for name in record} != record:
            raise SystemExit(f"{folder} has scenes of other settings, see {path}; name another folder")
        return task
    draw_scenes(folder, images["train"], images["val"], num_test=images["test"], seed=seed, style=style)
    objects = {split: count_sizes(open_dataset(folder, split=split)) for split, number in images.items() if number}
    write_json(path, {**record, "objects": objects})  # last: without it the data set is not complete
    return open_task(folder)


def open_task(folder: Path) -> Task:
    """Data set that `draw` has made.

    Raises:
        SystemExit: there is none.
    """
    if not (folder / _RECORD).is_file():
        raise SystemExit(
            f"{folder} has no {_RECORD}; draw the scenes first: "
            f"python -m benchmarks.accuracy.convergence.scenes {folder}"
        )
    return Task(folder, read_json(folder / _RECORD))


def count_sizes(dataset: DetectionDataset) -> dict[str, int]:
    """Number of objects of each size, by their areas."""
    areas = np.concatenate([np.asarray(sample.areas) for sample in dataset.samples] or [np.zeros(0)])
    found = np.searchsorted(BOUNDS, areas, side="right")
    return {name: int((found == index).sum()) for index, name in enumerate(SIZES)}


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="for the data set; the runs look for it in FOLDER/data")
    parser.add_argument("--variant", choices=list(VARIANTS), default="sizes")
    parser.add_argument("--train", type=int, default=700, help="number of pictures")
    parser.add_argument("--val", type=int, default=200)
    parser.add_argument("--test", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smallest", type=float, help="diameter of the smallest object, share of the shorter side")
    parser.add_argument("--largest", type=float, help="diameter of the largest object, share of the shorter side")
    parser.add_argument("--most-objects", type=int)
    parser.add_argument("--background", choices=("plain", "clouds"))
    parser.add_argument("--colors", choices=("own", "any"), help="whether each class has hues of its own")
    return parser.parse_args(arguments)


def style_of(given: argparse.Namespace) -> SceneStyle:
    """Style of the variant, with what the command changes in it."""
    changes: dict[str, Any] = {
        name: getattr(given, name)
        for name in ("smallest", "largest", "most_objects")
        if getattr(given, name) is not None
    }
    if given.background is not None:
        changes["plain_background"] = given.background == "plain"
    if given.colors is not None:
        changes["own_colors"] = given.colors == "own"
    return replace(VARIANTS[given.variant], **changes)


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw, count, print."""
    given = _options(arguments)
    images = {"train": given.train, "val": given.val, "test": given.test}
    task = draw(given.folder, style_of(given), images, given.seed)
    counts = task.record["objects"]
    say(aligned(("split", *SIZES), [(split, *(str(own[size]) for size in SIZES)) for split, own in counts.items()]))
    print(json.dumps(task.record))


if __name__ == "__main__":
    main()
