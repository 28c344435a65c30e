"""Folder of the comparison: the task, a run for each arm, results, detections, chosen learning rates, locks."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.accuracy.convergence.arms import TUNED, Arm, grid_arms
from benchmarks.report import say
from deformable_detr.core.errors import OutputError
from deformable_detr.core.files import write_json
from deformable_detr.core.reading import read_json
from deformable_detr.runs.lock import locked


class Place:
    """Folder of the comparison.

    Args:
        path: the folder; the task lies in `path/data`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = path / "data"
        self._rates = path / "rates.json"
        self._settings = path / "settings.json"

    def run(self, arm: Arm) -> Path:
        """Run folder of an arm."""
        return self._file("runs", arm.name)

    def clock(self, arm: Arm) -> Path:
        """Seconds of every epoch of an arm, as JSON lines."""
        return self._file("clocks", f"{arm.name}.jsonl")

    def result(self, arm: Arm) -> Path:
        """Result of an arm; it is there when the arm is finished."""
        return self._file("results", f"{arm.name}.json")

    def detections(self, arm: Arm) -> Path:
        """Detections of an arm's best weights in the validation images."""
        return self._file("detections", f"{arm.name}.json.gz")

    def results(self) -> list[dict[str, Any]]:
        """Results of all finished arms, by name."""
        return [read_json(path) for path in sorted(self._file("results", "any").parent.glob("*.json"))]

    def claim_settings(self, settings: dict[str, Any]) -> None:
        """Write what all arms share, or check that it is what the arms before had.

        Raises:
            SystemExit: it differs; the message names what.
        """
        if not self._settings.exists():
            write_json(self._settings, settings)
        before = read_json(self._settings)
        differing = [name for name in settings if before.get(name) != settings[name]]
        if differing:
            name = differing[0]
            raise SystemExit(
                f"{self.path} was begun with {name} {before.get(name)}, and this is {settings[name]}; "
                "say the same again, or name another folder"
            )

    def rates(self, epochs: int) -> dict[str, float]:
        """Factors on the learning rates by group, of those that are chosen.

        A group whose grid is complete is chosen now, by the best AP on the validation images, and never again.

        Args:
            epochs: longest schedule of DETR.
        """
        chosen: dict[str, Any] = read_json(self._rates) if self._rates.exists() else {}
        new = False
        for group in TUNED.keys() - chosen.keys():
            arms = grid_arms(group, epochs)
            if all(self.result(arm).exists() for arm in arms):
                tried = {arm.factor: read_json(self.result(arm))["best"]["ap"] for arm in arms}
                # Of equals, the one nearest to the default.
                factor = max(tried, key=lambda one: (tried[one], -abs(math.log(one))))
                if factor in (min(tried), max(tried)):
                    say(f"{group}: the best learning rate, {factor:g} x, is at the edge of those that were tried")
                chosen[group] = {
                    "factor": factor,
                    "epochs": arms[0].epochs,
                    "tried": {f"{k:g}": v for k, v in tried.items()},
                }
                new = True
        if new:
            write_json(self._rates, chosen)
        return {group: one["factor"] for group, one in chosen.items()}

    @contextmanager
    def alone_with(self, arm: Arm) -> Iterator[bool]:
        """Context in which no other process trains this arm; False where another does.

        The lock is the kernel's: it ends with the process that holds it, whose number the file in `locks` has.
        """
        folder = self._file("locks", arm.name)
        folder.mkdir(exist_ok=True)
        held = locked(folder, say)
        try:
            held.__enter__()
        except OutputError:
            yield False
            return
        try:
            yield True
        finally:
            held.__exit__(None, None, None)

    def _file(self, folder: str, name: str) -> Path:
        (self.path / folder).mkdir(parents=True, exist_ok=True)
        return self.path / folder / name


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Content of a file of JSON lines; a last line that was cut off does not count."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]
