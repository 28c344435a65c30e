"""Damaged files of a run folder: an answer or an error of ours in a short line, in no time, and with little memory."""

import importlib.util
import json
import random
import sys
import time
import types
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from deformable_detr.core.errors import DeformableDetrError
from deformable_detr.core.short_text import printable
from deformable_detr.report.history import history_of
from deformable_detr.report.write import write_report
from deformable_detr.runs.config import TrainConfig
from deformable_detr.runs.config_file import from_json, to_json
from deformable_detr.runs.folder import RunFolder
from deformable_detr.runs.places import DataPlaces, read_places
from deformable_detr.runs.recipes import find_recipe
from deformable_detr.training.loggers import open_service
from deformable_detr.training.metrics_log import MetricsLog
from tests.data.test_fuzz import damaged_bytes, damaged_values
from tests.runs.test_records import EPOCH, STEP
from tests.runs.test_version_1 import OLD
from tests.weights.test_fuzz import LONGEST_S, MOST_MEMORY, peak_memory

FILES = ("config.json", "data.json", "services.json", "transfer.json", "metrics.jsonl")
LONGEST_MESSAGE = 6000
HOSTILE: list[Any] = [
    10**9, 2**63, 10**400, -1, 0, 1e308, "\x1b[31m", "a\nb", "\ud800", "\0", "/dev/zero", "../..", "x" * 10**6,
    ["x" * 10**5] * 3, ["\x1b[2J"], {"\x1b[2J": {"\ud800": 0.5}}, {"x" * 10**6: {"ap": 0.5}}, [[]] * 1000,
    {"a": {"b": {}}},
]  # fmt: skip
# What grows in memory, most of it while it is read.
LARGE = [
    *(part * (15_000_000 // len(part)) for part in (b"[", b"9", b"\0", b"\n", b"{}\n")),
    *(b'{"a":[' + part * (15_000_000 // len(part)) + b"0]}" for part in (b"{},", b"[0],", b'"ab",', b"99,")),
    b'{"a":[' + b"[" * 90 + b"]" * 90 + b',[["",0]]' * 99_000 + b"]}",
    *(b'{"' + part * (15_000_000 // len(part)) + b'":0}' for part in (b"x", b"\\u0000", b'":0,"')),
    b"9" * 20_000_000,
]


def damaged(document: Any, rng: random.Random) -> Any:
    """A copy with odd values, with one that hurts, or with a key that does."""
    if rng.random() < 0.4:
        return damaged_values(document, rng)
    copy = deepcopy(document)
    container = copy
    while True:
        key = rng.choice(list(container) if isinstance(container, dict) else range(len(container)))
        if not isinstance(container[key], dict | list) or not container[key] or rng.random() < 0.2:
            break
        container = container[key]
    if isinstance(container, dict) and rng.random() < 0.25:
        container[rng.choice(["x" * 10**6, "\x1b[2J\n", "\ud800", "", "__class__", f"{key}s"])] = container.pop(key)
    else:
        container[key] = deepcopy(rng.choice(HOSTILE))
    return copy


def damaged_file(document: Any, rng: random.Random) -> bytes:
    if rng.random() < 0.3:
        return damaged_bytes(json.dumps(document).encode(), rng)
    return json.dumps(damaged(document, rng)).encode()


class Run(RunFolder):
    """A run folder without weights, every file of which is as a run writes it."""

    def __init__(self, path: Path, config: TrainConfig, data: Path) -> None:
        super().__init__(path)
        path.mkdir()
        self.documents: dict[str, Any] = {
            "config.json": to_json(config),
            "data.json": DataPlaces(str(data), None, "coco", ("a/b.png", "c.png")).record(),
            "services.json": {"wandb": "1a2b", "mlflow": "3c4d"},
            "transfer.json": {"from": "x.safetensors", "kept": {"cat": 3}, "fresh": ["dog"]},
        }
        self.lines: list[Any] = [STEP, {**STEP, "step": 8, "lr": 2e-4}, EPOCH, {"kind": "note", "text": "hello"}]
        for name in FILES:
            self.restore(name)

    def restore(self, name: str) -> None:
        document = self.documents.get(name)
        text = "".join(json.dumps(line) + "\n" for line in self.lines) if document is None else json.dumps(document)
        (self.path / name).write_text(text)

    def damage(self, name: str, rng: random.Random) -> None:
        if name != "metrics.jsonl":
            (self.path / name).write_bytes(damaged_file(self.documents[name], rng))
            return
        lines = [damaged_file(line, rng) if rng.random() < 0.6 else json.dumps(line).encode() for line in self.lines]
        (self.path / name).write_bytes(b"\n".join(rng.sample(lines, len(lines))))


class Services:
    """Stands for wandb, and remembers with which id a run began."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        module = types.ModuleType("wandb")
        module.__spec__ = importlib.util.spec_from_loader("wandb", loader=None)
        module.init = self.init  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "wandb", module)
        self.given: list[Any] = []

    def init(self, **settings: Any) -> Any:
        self.given.append(settings["id"])
        return types.SimpleNamespace(id="new", log=lambda *_, **__: None, finish=lambda **_: None)


class Lines:
    """Reporter that checks what it is told; a path, which may hold anything, is escaped where it is printed."""

    def say(self, line: str) -> None:
        assert len(line) < LONGEST_MESSAGE, line[:300]
        check_message(printable(line))

    def update(self, stage: str, done: int, total: int, details: str = "") -> None:
        check_message(f"{stage} {details}")


def check_message(text: str) -> None:
    assert text.isprintable(), repr(text[:500])
    assert len(text) < LONGEST_MESSAGE, text[:300]


def read_config(run: Run) -> None:
    config = find_recipe(str(run.config))
    assert from_json(json.loads(json.dumps(to_json(config))), "again") == config
    assert config.model.describe().isprintable()


def read_data(run: Run) -> None:
    places = read_places(run.data)
    assert DataPlaces(**{**places.record(), "held_out": places.held_out}) == places


def read_metrics(run: Run) -> None:
    records = run.records()
    assert all(isinstance(record, dict) for record in records)
    check_message(records.describe())
    history = history_of(records)
    for best_by in ("ap", "cat/ap"):
        history.best(best_by)
    for series in (history.loss(), history.precision(), history.class_precision(), history.learning_rate()):
        assert all(len(one.xs) == len(one.ys) for one in series)
    before = run.metrics.read_bytes()
    with MetricsLog(run):
        pass
    check_message(run.forget_after(7, 1))
    run.metrics.write_bytes(before)


def read_all(run: Run) -> None:
    page = write_report(run.path, device="cpu", reporter=Lines())
    assert page.stat().st_size < 1 << 20


def fuzz(run: Run, services: Services, name: str, rng: random.Random, times: int) -> dict[str, int]:
    """Outcomes of reading a damaged file in all ways in which it is read."""

    def service(run: Run) -> None:
        open_service("wandb", run, {}, check_message)
        assert all(one is None or (isinstance(one, str) and one.isprintable()) for one in services.given)
        services.given.clear()
        run.restore("services.json")

    ways: dict[str, list[Callable[[Run], None]]] = {
        "config.json": [read_config, read_all],
        "data.json": [read_data, read_all],
        "services.json": [service],
        "transfer.json": [read_all],
        "metrics.jsonl": [read_metrics, read_all],
    }
    outcomes = {"read": 0, "refused": 0}
    for number in range(times):
        run.damage(name, rng)
        outcomes[attempt(run, ways[name][number % len(ways[name])])] += 1
    run.restore(name)
    return outcomes


def attempt(run: Run, read: Callable[[Run], None]) -> str:
    """Whether it is read or refused; everything else is a fault."""
    peak_memory()
    before, start = peak_memory(), time.process_time()
    answer = "read"
    try:
        read(run)
    except DeformableDetrError as error:
        check_message(str(error))
        answer = "refused"
    assert time.process_time() - start < LONGEST_S
    after = peak_memory()
    if before is not None and after is not None:
        assert after - before < MOST_MEMORY, (read.__name__, (after - before) >> 20)
    return answer


@pytest.fixture
def run(tmp_path: Path, tiny_config: TrainConfig, scenes: Path) -> Run:
    return Run(tmp_path / "run", tiny_config, scenes)


@pytest.fixture
def services(monkeypatch: pytest.MonkeyPatch) -> Services:
    return Services(monkeypatch)


def test_nothing_is_refused_as_it_is_written(run: Run, services: Services) -> None:
    for read in (read_config, read_data, read_metrics, read_all):
        assert attempt(run, read) == "read"
    open_service("wandb", run, {}, check_message)
    assert services.given == ["1a2b"]


@pytest.mark.parametrize("name", FILES)
def test_damage_never_raises_anything_but_an_error_of_ours(name: str, run: Run, services: Services) -> None:
    outcomes = fuzz(run, services, name, random.Random(1), 16)
    assert outcomes["read"] > 0


def test_damaged_settings_of_the_first_version(run: Run) -> None:
    rng, outcomes = random.Random(2), []
    for _ in range(60):
        run.config.write_bytes(damaged_file(OLD, rng))
        outcomes.append(attempt(run, read_config))
    assert set(outcomes) == {"read", "refused"}


def test_each_odd_value_in_each_place_of_a_record(run: Run, services: Services) -> None:
    places = [(line, key) for line in (STEP, EPOCH) for key in line]
    lines = [{**line, key: value} for line, key in places for value in HOSTILE]
    lines += [
        {**EPOCH, "val_per_class": {name: {"ap": 0.5}}, "train": {name: 1.0}} for name in ("\ud800", "\x1b[2J", "")
    ]
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert attempt(run, read_metrics) == attempt(run, read_all) == "read"


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_much_damage(name: str, run: Run, services: Services) -> None:
    began, rng, num_read = time.monotonic(), random.Random(3), 0
    while time.monotonic() - began < 5:
        num_read += fuzz(run, services, name, rng, 10)["read"]
    assert num_read > 0


@pytest.mark.slow
def test_large_files_take_little(run: Run, services: Services) -> None:
    """What grows in memory, most of it while it is read."""
    for content in LARGE:
        for name, read in (("config.json", read_config), ("data.json", read_data), ("metrics.jsonl", read_metrics)):
            (run.path / name).write_bytes(content)
            attempt(run, read)
            run.restore(name)
