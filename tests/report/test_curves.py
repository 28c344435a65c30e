import json
import sys

import numpy as np
import pytest
from PIL import Image

from deformable_detr.core.errors import DataError, OutputError
from deformable_detr.report.curves import draw_curves


def rows(num_epochs: int = 4, classes: tuple[str, ...] = ("cat", "été")) -> list[dict]:
    lines = []
    for epoch in range(1, num_epochs + 1):
        for step in range(5 * epoch - 4, 5 * epoch + 1):
            lines.append({"kind": "step", "epoch": epoch, "step": step, "loss": 9 / step, "lr": 1e-4})
        record = {"kind": "epoch", "epoch": epoch, "step": 5 * epoch, "train": {"loss": 9 / (5 * epoch)}}
        if epoch % 2 == 0:
            record["val"] = {"ap": 0.1 * epoch, "ap50": 0.2 * epoch, "ap75": -1.0}
            record["val_per_class"] = {name: {"ap": 0.1, "ap50": 0.2 * epoch} for name in classes}
        lines.append(record)
    return lines


def written(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_a_picture_of_a_run(tmp_path):
    output = draw_curves(written(tmp_path / "metrics.jsonl", rows()), tmp_path / "curves.png")
    assert output == tmp_path / "curves.png"
    image = Image.open(output).convert("RGB")
    assert image.width > 1000
    assert len(np.unique(np.asarray(image).reshape(-1, 3), axis=0)) > 50


def test_a_line_cut_off_and_foreign_lines_are_passed_over(tmp_path):
    path = written(tmp_path / "metrics.jsonl", rows())
    whole = draw_curves(path, tmp_path / "whole.png").read_bytes()
    with path.open("a") as file:
        file.write('[1, 2]\n{"kind": "note"}\n{"kind": "step", "epo')
    assert draw_curves(path, tmp_path / "cut.png").read_bytes() == whole


@pytest.mark.parametrize(
    "lines",
    [
        rows(1),
        [row for row in rows() if row["kind"] == "step"],
        [row for row in rows() if row["kind"] == "epoch"],
        rows(classes=tuple(f"class {i}" for i in range(30))),
        rows(classes=("_private", "$x_1", "a$b$", "漢字")),
    ],
    ids=["one epoch", "no epoch yet", "no steps", "many classes", "odd names"],
)
def test_any_run(tmp_path, lines):
    assert draw_curves(written(tmp_path / "m.jsonl", lines), tmp_path / "c.png").stat().st_size > 5000


def test_no_window_system_and_no_global_figure(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    draw_curves(written(tmp_path / "m.jsonl", rows(1)), tmp_path / "c.png")


def test_nothing_to_draw(tmp_path):
    with pytest.raises(DataError, match="cannot read"):
        draw_curves(tmp_path / "none.jsonl", tmp_path / "c.png")
    with pytest.raises(DataError, match="no figures in it yet"):
        draw_curves(written(tmp_path / "m.jsonl", []), tmp_path / "c.png")


def test_a_picture_that_cannot_be_written(tmp_path):
    with pytest.raises(OutputError, match="cannot write the curves"):
        draw_curves(written(tmp_path / "m.jsonl", rows(1)), tmp_path / "missing" / "c.png")
