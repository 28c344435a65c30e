"""Damaged weights of every layout: an answer or an error of ours, in no time, and with little memory."""

import argparse
import json
import pickle
import random
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from deformable_detr.core.errors import DeformableDetrError
from deformable_detr.core.torch_files import FLOATS
from deformable_detr.data.preprocessing import Preprocessing
from deformable_detr.inference.detector import Detector
from deformable_detr.models import DeformableDETRConfig, DETRConfig, DINOConfig, build
from deformable_detr.weights import read
from deformable_detr.weights.checkpoint import HEADER_ENTRY, Checkpoint, save
from deformable_detr.weights.detr.keys import to_official_detr_keys
from deformable_detr.weights.detr.settings import to_detr_args
from deformable_detr.weights.dino.keys import to_authors_keys
from deformable_detr.weights.dino.settings import to_authors_args
from deformable_detr.weights.huggingface.reader import write_transformers
from deformable_detr.weights.official.keys import to_official_keys
from deformable_detr.weights.official.settings import to_args
from tests.data.test_fuzz import damaged_bytes, damaged_values
from tests.weights.tensors import weights_of

LONGEST_S = 20.0
MOST_MEMORY = 1 << 30
HOSTILE: list[Any] = [
    10**9, 2**31, 99_999, "hf-hub:timm/resnet50", "local-dir:.", "../../x", "/dev/zero", "\x1b[31m", "a\nb", "hub",
    ["cat"] * 3, [1, 1, 2], [True, False, 2], ["a", "a", "a"], ["x" * 10**5, "b", "c"], [0.0, 0.0, 0.0], {"ap": "high"},
]  # fmt: skip
# What only a pickle can hold; and what is no number of a computer.
ODD_ARGUMENTS: list[Any] = [
    torch.tensor([1, 2]),
    torch.ones(2, 3),
    [torch.ones(2)],
    torch.tensor(True),
    10**400,
    {1, 2},
]
TYPES = (torch.int64, torch.uint8, torch.bool, torch.float8_e4m3fn, torch.complex64, torch.float16, torch.float64)


@pytest.fixture(autouse=True)
def _no_process_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise AssertionError("weights started a process or asked the network")

    for owner, name in ((socket.socket, "connect"), (socket, "getaddrinfo"), (subprocess, "Popen")):
        monkeypatch.setattr(owner, name, refused)


def peak_memory() -> int | None:
    """Largest memory of this process since the last call, in bytes; None where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


def outcomes_of(attempts: Iterator[Callable[[], Checkpoint | Detector]]) -> dict[str, int]:
    outcomes = {"read": 0, "refused": 0}
    for attempt in attempts:
        peak_memory()
        before, start = peak_memory(), time.process_time()
        try:
            answer = attempt()
        except DeformableDetrError as error:
            message = str(error)
            assert message.isprintable(), repr(message)
            assert len(message) < 6000, message[:300]
            outcomes["refused"] += 1
        else:
            check(answer)
            outcomes["read"] += 1
        assert time.process_time() - start < LONGEST_S
        after = peak_memory()
        if before is not None and after is not None:
            assert after - before < MOST_MEMORY
    return outcomes


def check(answer: Checkpoint | Detector) -> None:
    """What is read can be used, shown and written."""
    assert len(set(answer.classes)) == len(answer.classes) == len(set(answer.category_ids)) == len(answer.category_ids)
    assert all(name.strip() and len(name) <= 500 and "\n" not in name and "\x1b" not in name for name in answer.classes)
    assert all(type(number) is int for number in answer.category_ids)
    assert 1 <= answer.preprocessing.short_side <= answer.preprocessing.max_side <= 20_000
    if isinstance(answer, Checkpoint):
        assert all(type(value) in (int, float) for value in answer.metrics.values())
        assert all(text.isprintable() for text in (*answer.provenance, *answer.provenance.values(), answer.licence))
        weights = answer.weights
    else:
        weights = answer.model.state_dict()
    for name, tensor in weights.items():
        assert tensor.dtype in FLOATS or name.endswith("num_batches_tracked")
        assert tensor.isfinite().all()


def damaged_settings(document: Any, rng: random.Random) -> Any:
    """A copy with odd values, or with one that hurts where a size or a name is expected."""
    if rng.random() < 0.5:
        return damaged_values(document, rng)
    copy = deepcopy(document)
    container = copy
    while True:
        key = rng.choice(list(container) if isinstance(container, dict) else range(len(container)))
        if not isinstance(container[key], dict | list) or not container[key] or rng.random() < 0.2:
            container[key] = deepcopy(rng.choice(HOSTILE))
            return copy
        container = container[key]


def damaged_tensors(tensors: dict[str, Tensor], rng: random.Random) -> dict[str, Tensor]:
    """A copy with one to three tensors of another type, shape, name or content, doubled or missing."""
    copy = dict(tensors)
    for _ in range(rng.randint(1, 3)):
        name = rng.choice(list(copy))
        tensor = copy.pop(name)
        action = rng.randrange(8)
        if action == 0:
            copy[name] = tensor.to(rng.choice(TYPES))
        elif action == 1:
            copy[name] = tensor.reshape(-1)[: rng.randint(0, 3)].clone()
        elif action == 2:
            copy[name] = tensor.clone()[None]
        elif action == 3:
            copy[rng.choice(["\x1b[2J", "x" * 10_000, f"class_embed.{'9' * 5000}.bias", name + ".9", name.upper()])] = (
                tensor
            )
        elif action == 4 and tensor.numel() and tensor.is_floating_point():
            copy[name] = tensor.clone()
            copy[name].view(-1)[rng.randrange(tensor.numel())] = rng.choice([float("nan"), float("inf"), -float("inf")])
        elif action == 5:
            copy[name] = tensor.half() if tensor.is_floating_point() else tensor
        elif action == 6:
            copy[name] = torch.zeros(())
        if not copy:
            copy["nothing"] = torch.zeros(1)
    return copy


def loaded(path: Path) -> Callable[[], Detector]:
    return lambda: Detector.load(path, device="cpu")


def fuzz_bytes(path: Path, opened: Path, rng: random.Random, times: int, head: int) -> Iterator[Callable[..., Any]]:
    """Damage in the first `head` bytes, where the description is, and now and then anywhere."""
    content = path.read_bytes()
    for _ in range(times):
        middle = len(content) if rng.random() < 0.1 else min(head, len(content))
        damaged = bytearray(content[:middle])
        if rng.random() < 0.5:
            damaged = damaged_bytes(content[:middle], rng)
        else:  # in place, so that what stands behind keeps its offset
            for _ in range(rng.randint(1, 4)):
                damaged[rng.randrange(middle)] = rng.choice([0, 255, ord("9"), rng.randrange(256)])
        path.write_bytes(damaged + content[middle:])
        yield loaded(opened)
    path.write_bytes(content)


def fuzz_ours(path: Path, rng: random.Random, times: int) -> Iterator[Callable[..., Any]]:
    """Values of the description, and tensors."""
    tensors = load_file(path)
    raw = path.read_bytes()
    header = json.loads(raw[8 : 8 + struct.unpack("<Q", raw[:8])[0]])["__metadata__"][HEADER_ENTRY]
    description = json.loads(header)
    for number in range(times):
        if number % 2:
            text = json.dumps(damaged_settings(description, rng))
            save_file(tensors, path, {HEADER_ENTRY: text})
        else:
            save_file(damaged_tensors(tensors, rng), path, {HEADER_ENTRY: header})
        yield loaded(path)
    path.write_bytes(raw)


def fuzz_transformers(folder: Path, rng: random.Random, times: int) -> Iterator[Callable[..., Any]]:
    """Values of config.json and preprocessor_config.json, tensors, and an index of parts."""
    weights = folder / "model.safetensors"
    tensors, content = load_file(weights), weights.read_bytes()
    texts = {name: (folder / name).read_text() for name in ("config.json", "preprocessor_config.json")}
    index = {"metadata": {"total_size": 7}, "weight_map": dict.fromkeys(tensors, "part.safetensors")}
    for number in range(times):
        if number % 4 < 2:
            name = list(texts)[number % 4]
            (folder / name).write_text(json.dumps(damaged_settings(json.loads(texts[name]), rng)))
        elif number % 4 == 2:
            save_file(damaged_tensors(tensors, rng), weights)
        else:
            (folder / "model.safetensors.index.json").write_text(json.dumps(damaged_settings(index, rng)))
            weights.rename(folder / "part.safetensors")
        yield loaded(folder)
        for name, text in texts.items():
            (folder / name).write_text(text)
        (folder / "model.safetensors.index.json").unlink(missing_ok=True)
        (folder / "part.safetensors").unlink(missing_ok=True)
        weights.write_bytes(content)


def fuzz_official(path: Path, rng: random.Random, times: int) -> Iterator[Callable[..., Any]]:
    """Tensors and arguments; what is not plain is pickled as it is."""
    document = torch.load(path)
    for number in range(times):
        damaged = dict(document)
        if number % 3 == 0:
            damaged["model"] = damaged_tensors(document["model"], rng)
        elif number % 3 == 1:
            args = damaged_settings(document["args"], rng)
            if isinstance(args, dict) and args and rng.random() < 0.4:
                args[rng.choice(list(args))] = rng.choice(ODD_ARGUMENTS)
            damaged["args"] = args if rng.random() < 0.5 or not isinstance(args, dict) else argparse.Namespace(**args)
        else:
            damaged = damaged_settings({**document, "model": {}}, rng)
            if isinstance(damaged, dict) and damaged.get("model") == {}:
                damaged["model"] = document["model"]
        try:
            torch.save(damaged, path, _use_new_zipfile_serialization=rng.random() < 0.8)
        except (pickle.PicklingError, UnicodeEncodeError):
            continue
        yield lambda: read(path)
    torch.save(document, path)


def small_ours(tiny: DeformableDETRConfig) -> Checkpoint:
    model = replace(tiny, num_classes=3)
    return Checkpoint(
        weights=build(model).state_dict(),
        model=model,
        classes=("cat", "dög", "newt"),
        category_ids=(17, 3, 40),
        preprocessing=Preprocessing(short_side=48, max_side=80),
        metrics={"ap": 0.25, "ap_small": -1.0},
        provenance={"recipe": "tiny", "data": "pets"},
        licence="CC0-1.0",
    )


def official_documents() -> dict[str, dict[str, Any]]:
    """Backbones are as published, since no other has an official form; all tensors are parts of the same numbers."""
    small: dict[str, Any] = {
        "hidden_dim": 64, "num_heads": 4, "encoder_layers": 1, "decoder_layers": 2, "ffn_dim": 48, "num_queries": 11,
        "num_classes": 3,
    }  # fmt: skip
    base, detr, dino = (
        DeformableDETRConfig(**small),
        DETRConfig(**small, backbone="resnet18.tv_in1k"),
        DINOConfig(**small, proposals="paper"),
    )
    tables = {
        "official": (to_official_keys(weights_of(base), base), to_args(base)),
        "official DETR": (to_official_detr_keys(weights_of(detr)), to_detr_args(detr)),
        "official DINO": (to_authors_keys(weights_of(dino), dino), to_authors_args(dino)),
    }
    return {name: {"model": model, "args": args, "epoch": 49} for name, (model, args) in tables.items()}


def fuzz_all(tiny: DeformableDETRConfig, folder: Path, seed: int, times: int) -> dict[str, dict[str, int]]:
    rng = random.Random(seed)
    ours, theirs = folder / "best.safetensors", folder / "theirs"
    checkpoint = small_ours(tiny)
    save(checkpoint, ours)
    write_transformers(checkpoint, theirs)
    documents = official_documents()
    official = {name: folder / f"{name}.pth" for name in documents}
    for name, document in documents.items():
        torch.save(document, official[name])
    sources = {
        "ours, bytes": fuzz_bytes(ours, ours, rng, times, 40_000),
        "ours": fuzz_ours(ours, rng, times),
        "config.json, bytes": fuzz_bytes(theirs / "config.json", theirs, rng, times // 2, 4000),
        "card, bytes": fuzz_bytes(theirs / "README.md", theirs, rng, times // 4, 200),
        "transformers": fuzz_transformers(theirs, rng, times),
        # Each kind of damage once at least; as many in all as of every other layout.
        **{name: fuzz_official(path, rng, max(3, times // 6)) for name, path in official.items()},
        "official, bytes": fuzz_bytes(official["official"], official["official"], rng, times // 2, 60_000),
    }
    outcomes = {name: outcomes_of(attempts) for name, attempts in sources.items()}
    if times >= 100:  # of few, all may end alike
        assert all(min(found.values()) or name == "card, bytes" for name, found in outcomes.items()), outcomes
    assert all(sum(found[answer] for found in outcomes.values()) for answer in ("read", "refused")), outcomes
    return outcomes


def test_damage_never_raises_anything_but_an_error_of_ours(tiny_config: Any, tmp_path: Path) -> None:
    outcomes = fuzz_all(tiny_config.model, tmp_path, seed=1, times=6).values()
    assert sum(found["read"] for found in outcomes) > 3
    assert sum(found["refused"] for found in outcomes) > 10


@pytest.mark.slow
def test_much_damage(tiny_config: Any, tmp_path: Path) -> None:
    outcomes = fuzz_all(tiny_config.model, tmp_path, seed=2, times=120)
    assert sum(sum(found.values()) for found in outcomes.values()) >= 500
