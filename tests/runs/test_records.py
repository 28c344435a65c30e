import json
from pathlib import Path
from typing import Any

import pytest

from deformable_detr.core.errors import DataError
from deformable_detr.runs.bounds import LARGEST_COUNT
from deformable_detr.runs.records import RecordReader, is_record

STEP: dict[str, Any] = {
    "kind": "step", "time": 1.5, "epoch": 2, "step": 7, "loss": 3.25, "terms": {"decoder.0/l1": 0.5}, "lr": 1e-4,
}  # fmt: skip
EPOCH: dict[str, Any] = {
    "kind": "epoch", "time": 2.5, "epoch": 2, "step": 8, "train": {"loss": 3.0}, "train_seconds": 2.0,
    "val": {"ap": 0.25, "ap50": 1.0, "ap_large": -1.0}, "val_per_class": {"cat": {"ap": 0.25}}, "val_seconds": 0.5,
}  # fmt: skip


def test_what_a_run_writes_is_a_record() -> None:
    assert is_record(STEP)
    assert is_record(EPOCH)
    assert is_record({"kind": "step", "epoch": 1, "step": 1})
    assert is_record(
        {**EPOCH, "val_at_n": {"max_detections": 500, "ap": 0.5}, "val_at_n_per_class": {"cat": {"ap": 1}}}
    )
    assert is_record({**STEP, "grad_norm": float("inf")})
    assert is_record({"kind": "note", "text": "of a later version"})


STRANGE: list[Any] = [
    *(None, 5, [], {}, {"kind": None}, {"kind": "step"}, {"kind": "note", "epoch": "1"}),
    *({**STEP, "epoch": value} for value in (None, 0, -1, 1.0, True, "2", [], LARGEST_COUNT + 1, 10**30)),
    *({**STEP, "step": value} for value in (None, 0, -1, 1.5, "7", {}, 10**30)),
    *({**STEP, "loss": value} for value in (None, "3", True, [], 10**400)),
    *({**STEP, "terms": value} for value in (None, 3, "x", [1], {"a": "b"}, {"a": {"b": {"c": 1}}})),
    *({**EPOCH, "train": value} for value in (None, 1, [], {"loss": None}, {"loss": "x"})),
    *({**EPOCH, "val": value} for value in (None, 1, {"ap": "x"}, {"ap": {}}, {"ap": 2}, {"ap": float("nan")})),
    *({**EPOCH, "val_at_n": value} for value in (None, 1, {"ap": 7}, {"max_detections": "x"}, {"ap": {}})),
    *({**EPOCH, "val_at_n_per_class": value} for value in (None, 1, {"cat": 1}, {"cat": {"ap": 7}})),
    *({**EPOCH, "val_per_class": value} for value in (None, 1, {"cat": 1}, {"cat": {"ap": []}}, {"cat": {"ap": 7}})),
]


@pytest.mark.parametrize("value", STRANGE, ids=str)
def test_what_a_strange_hand_writes_is_none(value: Any) -> None:
    assert not is_record(value)


def test_lines_that_are_no_records_are_left_out_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [
        json.dumps(STEP).encode(),
        b"",
        b"{",
        b"\xff\xfe",
        b"[" * 10**5,
        b'{"kind": "step", "epoch": ' + b"9" * 5000,
    ]
    path.write_bytes(b"\n".join([*lines, json.dumps(EPOCH).encode(), json.dumps(STEP).encode()[:-9]]))
    records = RecordReader(path)
    assert list(records) == [STEP, EPOCH]
    assert records.num_strange == 5
    assert records.describe() == "metrics.jsonl: 5 lines are no records of a run, and left out"
    path.write_bytes(lines[0])
    assert list(records) == [STEP]
    assert records.describe() == ""


def test_a_line_without_end_takes_no_more_memory_than_the_longest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deformable_detr.runs.records._LONGEST_LINE", 500)
    path = tmp_path / "metrics.jsonl"
    path.write_text("x" * 1200 + "\n" + json.dumps(STEP) + "\n")
    records = RecordReader(path)
    assert list(records) == [STEP]
    assert records.num_strange == 3


def test_an_epoch_of_as_many_classes_as_a_model_has_is_one_record(tmp_path: Path) -> None:
    names = ("ap", "ap50", "ap75", "ar100")
    by_class = {f"class {number}": dict.fromkeys(names, 0.12345678901234567) for number in range(100_000)}
    line = json.dumps({**EPOCH, "val_per_class": by_class})
    assert len(line) > 12_000_000
    (tmp_path / "metrics.jsonl").write_text(line + "\n")
    records = RecordReader(tmp_path / "metrics.jsonl")
    (found,) = records
    assert (len(found["val_per_class"]), records.num_strange) == (100_000, 0)


def test_no_file_and_no_file_that_can_be_read(tmp_path: Path) -> None:
    assert list(RecordReader(tmp_path / "metrics.jsonl")) == []
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(DataError, match=r"metrics\.jsonl: cannot read the metrics of the run: it is a folder"):
        list(RecordReader(tmp_path / "metrics.jsonl"))


def test_another_file_is_not_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("{}\n" * 9_999 + json.dumps(STEP) + "\n\n")
    assert list(RecordReader(path)) == [STEP]
    path.write_text("{}\n" * 9_999 + json.dumps(STEP) + "\n{}\n" + "x" * 10**6)
    with pytest.raises(DataError, match=r"metrics\.jsonl: 10,000 lines are no records of a run, .* move it away"):
        list(RecordReader(path))
