"""Files, functions and changes of folder on the way from `train()` to the first step, counted as they are called.

python -m benchmarks.hops [--list]

A tiny data set is trained on in this process until the optimizer takes its first step, and every call from one
function of the package to another is noted. A folder is an entry at the root of the package: a folder, or a module
that lies there alone. Run it in a checkout of another commit, by its path, to compare.
"""

import json
import sys
import tempfile
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from torch.optim.optimizer import register_optimizer_step_pre_hook

import deformable_detr

PACKAGE = Path(deformable_detr.__file__).parent


class _FirstStep(Exception):
    """Ends the training."""


class Calls:
    """Calls between functions of the package, from the moment it is entered."""

    def __init__(self) -> None:
        self.functions: set[tuple[str, str]] = set()
        self.edges: Counter[tuple[tuple[str, str], tuple[str, str]]] = Counter()
        self.sequence: list[str] = []
        self._known: dict[CodeType, tuple[str, str] | None] = {}

    def __enter__(self) -> "Calls":
        sys.setprofile(self._called)
        return self

    def __exit__(self, *error: object) -> None:
        sys.setprofile(None)

    def _called(self, frame: FrameType, event: str, argument: object) -> None:
        if event != "call" or (place := self._place(frame.f_code)) is None:
            return
        self.functions.add(place)
        self.sequence.append(folder(place[0]))
        caller = frame.f_back
        while caller is not None and self._place(caller.f_code) is None:
            caller = caller.f_back
        if caller is not None:
            origin = self._place(caller.f_code)
            assert origin is not None
            self.edges[origin, place] += 1

    def _place(self, code: CodeType) -> tuple[str, str] | None:
        if code not in self._known:
            path = Path(code.co_filename)
            named = code.co_name == "<lambda>" or not code.co_name.startswith("<")
            # What runs when a module or a class is made is no call of a function; NEWLOCALS alone marks a class.
            is_function = named and bool(code.co_flags & 0x1)
            inside = is_function and path.is_relative_to(PACKAGE)
            self._known[code] = (str(path.relative_to(PACKAGE)), code.co_qualname) if inside else None
        return self._known[code]

    def figures(self) -> dict[str, int]:
        """Distinct files, functions, calls between two functions, and of these the ones from folder to folder."""
        across = [edge for edge in self.edges if folder(edge[0][0]) != folder(edge[1][0])]
        changes = sum(a != b for a, b in zip(self.sequence, self.sequence[1:], strict=False))
        return {
            "files": len({file for file, _ in self.functions}),
            "functions": len(self.functions),
            "calls": len(self.edges),
            "calls_across_folders": len(across),
            "changes_of_folder": changes,
        }


def folder(file: str) -> str:
    """The entry at the root of the package that a file lies in, or is."""
    return file.split("/")[0]


def tiny(folder: Path) -> Path:
    """Six grey pictures with a box each, in COCO's layout, in the two usual splits."""
    from PIL import Image

    for split, count in (("train", 4), ("val", 2)):
        (folder / split).mkdir(parents=True)
        images, annotations = [], []
        for number in range(1, count + 1):
            Image.new("RGB", (90, 60), (40 * number, 90, 120)).save(folder / split / f"{number}.png")
            images.append({"id": number, "file_name": f"{number}.png", "width": 90, "height": 60})
            annotations.append(
                {"id": number, "image_id": number, "category_id": 1, "bbox": [9, 8, 31, 27], "area": 837, "iscrowd": 0}
            )
        document = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "box"}]}
        (folder / split / "_annotations.coco.json").write_text(json.dumps(document), encoding="utf-8")
    return folder


def counted() -> Calls:
    """The calls of a training up to its first step, with a network of timm's own tests."""
    recipes: Any = getattr(deformable_detr, "recipes", deformable_detr)
    config = recipes.small()
    model = replace(
        config.model, backbone="test_resnet", backbone_weights="none", frozen_stages=0, frozen_batch_norm=False
    )
    settings = {"model": model, "epochs": 1, "num_workers": 0}
    if hasattr(config, "data"):  # settings in groups
        settings = {
            "model": model,
            "schedule": replace(config.schedule, epochs=1),
            "data": replace(config.data, num_workers=0),
        }
    calls = Calls()

    def end(*inputs: object) -> None:
        raise _FirstStep

    register_optimizer_step_pre_hook(end)
    with tempfile.TemporaryDirectory() as place:
        data = tiny(Path(place) / "data")
        for name in deformable_detr.__all__:  # names load when they are first used; that is no step of the way
            getattr(deformable_detr, name)
        with calls, suppress(_FirstStep):
            deformable_detr.train(replace(config, **settings), data=data, output=Path(place) / "run", device="cpu")
    return calls


def main() -> None:
    calls = counted()
    if "--list" in sys.argv:
        for file in sorted({file for file, _ in calls.functions}):
            names = sorted(name for path, name in calls.functions if path == file)
            print(f"{file}: {', '.join(names)}")
    print(json.dumps(calls.figures()))


if __name__ == "__main__":
    main()
