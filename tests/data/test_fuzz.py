"""Damaged annotations of every format: an answer or a `DataError`, never another exception."""

import json
import os
import random
import socket
import subprocess
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from deformable_detr.core.errors import DataError
from deformable_detr.data.dataset import DetectionDataset
from deformable_detr.data.formats import coco, voc, yolo
from deformable_detr.data.open import open_dataset
from tests.data import written, written_others

ODD_VALUES: list[Any] = [
    None, True, False, "", "7", "text", "\ud800", "\0", "../..", -1, 0, 1, 0.5, -0.0, 1e400, -1e400, float("nan"),
    10**30, 10**400, 2**63, [], [[]], {}, [1, 2], {"id": 1}, [0, 0, 1, 1], [float("inf")] * 4,
]  # fmt: skip
ODD_TEXTS = [
    b"nan", b"-inf", b"1e400", b"-1", b"9" * 400, b"", b"\xff", b"\0", b"<", b"&amp;", b"&b;", b"[", b"]", b"{", b"}",
    b":", b"- ", b"*a", b"&a ", b"!!int ", b"\xef\xbb\xbf", b"\r", b"\t", b"'", b'"', b"%", b"<<: ", b"]]>", b"\n",
]  # fmt: skip


def damaged_values(document: Any, rng: random.Random) -> Any:
    """A copy of a JSON value with one to three of its parts replaced, removed or doubled."""
    copy = deepcopy(document)
    for _ in range(rng.randint(1, 3)):
        places: list[tuple[Any, Any]] = []
        pending = [copy]
        while pending:
            value = pending.pop()
            if isinstance(value, dict | list):
                inner = list(value.items() if isinstance(value, dict) else enumerate(value))
                places += [(value, key) for key, _ in inner]
                pending += [item for _, item in inner]
        if not places:
            return rng.choice(ODD_VALUES)
        container, key = rng.choice(places)
        action = rng.random()
        if action < 0.75:
            container[key] = deepcopy(rng.choice(ODD_VALUES))
        elif action < 0.9:
            del container[key]
        elif isinstance(container, list):
            container.append(deepcopy(container[key]))
    return copy


def damaged_bytes(content: bytes, rng: random.Random) -> bytes:
    """The bytes with some of them changed, cut out, doubled or replaced by what parsers dislike."""
    for _ in range(rng.randint(1, 4)):
        start = rng.randrange(len(content) + 1)
        end = min(len(content), start + rng.choice([1, 1, 2, 5, 20]))
        middle = rng.choice(
            [rng.randbytes(1), b"", content[start:end] * 2, rng.choice(ODD_TEXTS), rng.choice(ODD_TEXTS)]
        )
        content = content[:start] + middle + content[end:]
    return content[: rng.randrange(len(content) + 1)] if content and rng.random() < 0.15 else content


def outcomes_of(attempts: Iterator[Callable[[], DetectionDataset]]) -> dict[str, int]:
    outcomes = {"read": 0, "refused": 0}
    for attempt in attempts:
        try:
            dataset = attempt()
        except DataError as error:
            str(error).encode()
            outcomes["refused"] += 1
        else:
            check(dataset)
            outcomes["read"] += 1
    return outcomes


def check(dataset: DetectionDataset) -> None:
    """What is read can be trained on, whatever was left out of it."""
    assert len(set(dataset.classes)) == len(dataset.classes) == len(dataset.category_ids) > 0
    for sample in dataset.samples:
        x1, y1, x2, y2 = sample.boxes_xyxy.T
        width, height = sample.size_wh
        assert ((x1 >= 0) & (x1 < x2) & (x2 <= width) & (y1 >= 0) & (y1 < y2) & (y2 <= height)).all()
        assert ((sample.class_ids >= 0) & (sample.class_ids < len(dataset.classes))).all()
        assert (sample.areas >= 0).all()
        assert len(sample.object_ids) == len(x1)


def fuzz_coco_values(folder: Path, rng: random.Random, times: int) -> Iterator[Callable[[], DetectionDataset]]:
    path = folder / "annotations/train.json"
    document = json.loads(path.read_text())
    for _ in range(times):
        path.write_text(json.dumps(damaged_values(document, rng)))
        yield lambda: open_dataset(path, strict=False)


def fuzz_file(path: Path, opened: Path, rng: random.Random, times: int) -> Iterator[Callable[[], DetectionDataset]]:
    content = path.read_bytes()
    for _ in range(times):
        path.write_bytes(damaged_bytes(content, rng))
        yield lambda: open_dataset(opened, strict=False)
    path.write_bytes(content)


def put_darknet(folder: Path, drawn: DetectionDataset) -> Path:
    """A data set of darknet; the label file of its first image has keypoints, a polygon and a track."""
    small = drawn.subset([0, 2])
    yolo.save(small, folder, split="train", images="link")
    (folder / "data.yaml").unlink()
    (folder / "obj.names").write_text("".join(f"{name}\n" for name in small.classes))
    (folder / "obj.data").write_text("classes = 3\ntrain = data/train.txt\nnames = data/obj.names\n")
    label = min((folder / "labels/train").iterdir())
    label.write_text("0 .5 .5 .8 .6 .45 .45 2 .55 .45 1\n1 .1 .1 .4 .2 .3 .4 .2 .3\n2 .5 .5 .2 .2 .91 3\n")
    return label


def put_shapes(folder: Path, xml: Path) -> Path:
    """An xml beside that of another image, with a rotated box and a polygon, in an encoding of its own."""
    numbers = "".join(f"<x{i}>{i}</x{i}><y{i}>{i * i}</y{i}>" for i in range(1, 4))
    rotated = "<robndbox><cx>9</cx><cy>8</cy><w>7</w><h>6</h><angle>.5</angle></robndbox>"
    shapes = (rotated, f"<polygon>{numbers}</polygon>")
    objects = "".join(f"<object><name>zebra</name>{shape}</object>" for shape in shapes)
    path = min(path for path in (folder / "Annotations").iterdir() if path != xml)
    path.write_text(f'<?xml version="1.0" encoding="GBK"?><annotation>{objects}</annotation>', encoding="gbk")
    return path


def fuzz_all(drawn: DetectionDataset, folder: Path, seed: int, times: int) -> None:
    rng = random.Random(seed)
    small = drawn.subset([0, 2])
    for module, name in ((coco, "coco"), (yolo, "yolo"), (voc, "voc")):
        module.save(small, folder / name, split="train", images="link")
    label = next((folder / "yolo/labels/train").iterdir())
    xml = next((folder / "voc/Annotations").iterdir())
    json_file = folder / "coco/annotations/train.json"
    lists = (folder / "yolo/train.txt", folder / "voc/ImageSets/Main/train.txt", folder / "voc/classes.txt")
    sources = {
        "json bytes": fuzz_file(json_file, json_file, rng, times),
        "json values": fuzz_coco_values(folder / "coco", rng, times),
        "yaml": fuzz_file(folder / "yolo/data.yaml", folder / "yolo/data.yaml", rng, times),
        "labels": fuzz_file(label, folder / "yolo", rng, times // 2),
        "xml": fuzz_file(xml, folder / "voc", rng, times // 2),
        "yolo list": fuzz_file(lists[0], folder / "yolo", rng, times // 8),
        "voc list": fuzz_file(lists[1], folder / "voc", rng, times // 8),
        "voc classes": fuzz_file(lists[2], folder / "voc", rng, times // 8),
        "long labels": fuzz_file(put_darknet(folder / "darknet", drawn), folder / "darknet", rng, times // 8),
        "darknet": fuzz_file(folder / "darknet/obj.data", folder / "darknet/obj.data", rng, times // 4),
        "xml of other shapes": fuzz_file(put_shapes(folder / "voc", xml), folder / "voc", rng, times // 8),
    }
    for name, attempts in sources.items():
        outcomes = outcomes_of(attempts)
        assert outcomes["read"] > times // 50, name


WRITERS = {
    writer.__name__.removeprefix("write_"): writer
    for writer in (
        *(written.write_csv, written.write_labelme, written.write_cvat, written.write_via, written.write_createml),
        *(written.write_labelstudio, written_others.write_datumaro, written_others.write_visdrone),
        *(written_others.write_kitti, written_others.write_openimages, written_others.write_dota),
        *(written_others.write_huggingface, written_others.write_supervisely),
    )
}
ANNOTATIONS = (".csv", ".json", ".jsonl", ".xml", ".txt")


def fuzz_json(path: Path, opened: Path, rng: random.Random, times: int) -> Iterator[Callable[[], DetectionDataset]]:
    content = path.read_text()
    document = json.loads(content)
    for _ in range(times):
        path.write_text(json.dumps(damaged_values(document, rng)))
        yield lambda: open_dataset(opened, strict=False)
    path.write_text(content)


def fuzz_format(name: str, drawn: DetectionDataset, folder: Path, seed: int, times: int) -> None:
    """Damage of every kind of file that a format has: the first of each ending in each folder."""
    rng = random.Random(f"{name} {seed}")
    opened = WRITERS[name](drawn.subset([0, 2]), folder)
    files = {(path.parent, path.suffix): path for path in sorted(folder.rglob("*"), reverse=True) if path.is_file()}
    damaged = [path for (_, suffix), path in files.items() if suffix in ANNOTATIONS]
    assert damaged
    num_read = 0
    for path in damaged:
        share = times // (2 * len(damaged))
        attempts = [fuzz_file(path, opened, rng, share)]
        if path.suffix == ".json":
            attempts.append(fuzz_json(path, opened, rng, share))
        num_read += sum(outcomes_of(each)["read"] for each in attempts)
    assert num_read > times // 50


@pytest.fixture(autouse=True)
def _only_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading starts no program and connects to nothing."""

    def refuse(*given: object, **_: object) -> None:
        raise AssertionError(f"tried to leave this process: {given}")

    for place, name in ((subprocess, "Popen"), (os, "system"), (os, "posix_spawn"), (socket.socket, "connect")):
        monkeypatch.setattr(place, name, refuse)


def test_damage_never_raises_anything_but_a_data_error(drawn: DetectionDataset, tmp_path: Path) -> None:
    fuzz_all(drawn, tmp_path, seed=1, times=300)


@pytest.mark.parametrize("name", WRITERS)
def test_damage_of_every_format(name: str, drawn: DetectionDataset, tmp_path: Path) -> None:
    fuzz_format(name, drawn, tmp_path / name, seed=1, times=60)


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITERS)
def test_much_damage_of_every_format(name: str, drawn: DetectionDataset, tmp_path: Path) -> None:
    fuzz_format(name, drawn, tmp_path / name, seed=2, times=300)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2])
def test_much_damage(seed: int, drawn: DetectionDataset, tmp_path: Path) -> None:
    fuzz_all(drawn, tmp_path, seed=seed, times=800)
