"""Files of torch.save in both formats, whole and broken; nothing in them runs."""

import argparse
import os
import pickle
import random
import subprocess
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from deformable_detr.core.errors import CheckpointError
from deformable_detr.core.torch_files import (
    FLOATS,
    check_memory,
    check_numbers,
    first_not_finite,
    inner_table,
    is_plain,
    read_tensors,
    read_torch_file,
    write_tensors,
)

# Of torch 1.6 and later, and of those before.
FORMATS = {"zip": True, "legacy": False}


def save(content, path, form):
    torch.save(content, path, _use_new_zipfile_serialization=FORMATS[form])
    return path


@pytest.fixture
def document():
    return {
        "model": {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor([7.5])},
        "optimizer": {"state": {140234234234234: {"step": 3}}, "param_groups": [{"betas": (0.9, 0.999)}]},
        "args": argparse.Namespace(lr=2e-4, names=["backbone.0"], two_stage=True, output_dir=None),
    }


@pytest.mark.parametrize("form", FORMATS)
def test_tensors_values_and_a_namespace_come_back(document, tmp_path, form):
    path = save(document, tmp_path / "x.pth", form)
    read = read_torch_file(path)
    assert read["args"] == document["args"]
    assert read["optimizer"] == document["optimizer"]
    assert all(torch.equal(tensor, document["model"][name]) for name, tensor in read["model"].items())


def test_what_the_caller_trusts_stays_as_it_was(document, tmp_path):
    path = save(document, tmp_path / "x.pth", "zip")
    before = set(torch.serialization.get_safe_globals())
    with torch.serialization.safe_globals([argparse.Namespace]):
        read_torch_file(path)
        assert set(torch.serialization.get_safe_globals()) == before | {argparse.Namespace}
    read_torch_file(path)
    assert set(torch.serialization.get_safe_globals()) == before


def test_a_compressed_archive_is_not_taken_for_a_plain_one(document, tmp_path):
    plain = save(document, tmp_path / "x.pth", "zip")
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(tmp_path / "y.pth", "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    read = read_torch_file(tmp_path / "y.pth")
    assert torch.equal(read["model"]["a"], document["model"]["a"])


class Command:
    """What a pickle of it runs when it is read as pickles usually are."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


class Process(Command):
    def __reduce__(self):
        return subprocess.call, (["mkdir", str(self.marker)],)


class Evaluated(Command):
    def __reduce__(self):
        return eval, (f"__import__('os').mkdir({str(self.marker)!r})",)


@pytest.mark.parametrize("kind", [Command, Process, Evaluated])
@pytest.mark.parametrize("form", FORMATS)
def test_nothing_runs(tmp_path, form, kind):
    marker = tmp_path / "it_ran"
    content = {"model": {"a": torch.ones(1)}, "args": argparse.Namespace(device=kind(marker))}
    path = save(content, tmp_path / "x.pth", form)
    with pytest.raises(CheckpointError, match=r"x\.pth holds more than tensors and settings: reading it would run \w+"):
        read_torch_file(path)
    assert not marker.exists()
    torch.load(path, weights_only=False)  # else this test would pass with anything
    assert marker.exists()


def test_a_plain_pickle_is_not_even_begun(tmp_path):
    marker = tmp_path / "it_ran"
    (tmp_path / "x.pth").write_bytes(pickle.dumps(Command(marker)))
    with pytest.raises(CheckpointError, match=r"x\.pth is a pickle, but not one of PyTorch's"):
        read_torch_file(tmp_path / "x.pth")
    assert not marker.exists()


def test_a_safetensors_file_by_another_name(tmp_path, document):
    save_file(document["model"], tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"x\.pth is a safetensors file, whatever its name says"):
        read_torch_file(tmp_path / "x.pth")
    path = save(document, tmp_path / "x.safetensors", "zip")
    with pytest.raises(CheckpointError, match=r"is a file of PyTorch's own kind.*let it end in \.pth"):
        read_torch_file(path)


@pytest.mark.parametrize("content", [b"\n<!DOCTYPE html>", b"", b"PK\x03\x04 and then no archive"])
def test_files_of_other_kinds_are_named(tmp_path, content):
    (tmp_path / "x.pth").write_bytes(content)
    message = {b"\n": "is a web page, not weights; Google Drive", b"": "is empty"}
    with pytest.raises(CheckpointError, match=rf"x\.pth {message.get(content[:1], 'is not a whole file of PyTorch')}"):
        read_torch_file(tmp_path / "x.pth")


def test_archives_without_weights(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
        archive.writestr("weights/readme.txt", "none")
    with pytest.raises(CheckpointError, match="is a zip archive without PyTorch weights"):
        read_torch_file(tmp_path / "x.pth")
    with zipfile.ZipFile(tmp_path / "x.pth", "a") as archive:
        archive.writestr("weights/data.pkl", "")
        archive.writestr("weights/constants.pkl", "")
    with pytest.raises(CheckpointError, match="is a TorchScript program"):
        read_torch_file(tmp_path / "x.pth")


def test_no_file(tmp_path):
    for path in (tmp_path / "gone.pth", tmp_path):
        with pytest.raises(CheckpointError, match="no such checkpoint file"):
            read_torch_file(path)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_a_file_cut_off_is_refused(document, tmp_path, form, share):
    path = save(document, tmp_path / "x.pth", form)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match=r"x\.pth is not a whole file of PyTorch weights; it is cut off"):
        read_torch_file(path)


@pytest.mark.parametrize("form", FORMATS)
def test_damage_anywhere_is_one_error(document, tmp_path, form):
    """Whatever byte is wrong, reading either succeeds (the byte was a number of a tensor) or says so in our words."""
    path = save(document, tmp_path / "x.pth", form)
    content = path.read_bytes()
    generator = random.Random(0)
    refused = 0
    for _ in range(300):
        damaged = bytearray(content)
        for _ in range(generator.randint(1, 4)):
            damaged[generator.randrange(len(content))] = generator.randrange(256)
        path.write_bytes(damaged)
        try:
            read_torch_file(path)
        except CheckpointError:
            refused += 1
    assert 50 < refused < 300


def test_only_tensors_that_are_all_there_are_plain(tmp_path):
    pool = torch.arange(6.0)
    assert is_plain(pool)
    assert is_plain(pool.half()[2:])
    others = {
        "integers": torch.arange(3),
        "no memory": torch.ones(2, device="meta"),
        "sparse": torch.eye(2).to_sparse(),
        "larger than its memory": torch.ones(1).expand(1_000_000_000, 1_000_000),
        "no tensor": [1.0],
    }
    save(others, tmp_path / "x.pth", "zip")
    for name, value in (others | read_torch_file(tmp_path / "x.pth")).items():
        assert not is_plain(value), name


@pytest.mark.parametrize("name", ["x.safetensors", "x.pth", "nested.pth", "y.pth"])
def test_named_tensors_outlive_their_file(document, tmp_path, name):
    path, tensors = tmp_path / name, document["model"]
    if name == "x.safetensors":
        write_tensors(tensors, path, {"format": "pt"})
    else:
        torch.save({"nested.pth": {"state_dict": tensors}, "y.pth": document}.get(name, tensors), path)
    read = read_tensors(path)
    path.write_bytes(bytes(path.stat().st_size))
    assert read.keys() == tensors.keys()
    assert all(torch.equal(tensor, tensors[key]) for key, tensor in read.items())


@pytest.mark.parametrize(
    "content", [[1, 2], {"a": 1.5}, {3: torch.ones(2)}, {"a": torch.ones(1).expand(1_000_000_000, 1_000_000)}]
)
def test_what_is_no_table_of_tensors_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"x\.pth holds no table of named tensors"):
        read_tensors(tmp_path / "x.pth")


def test_safetensors_that_cannot_be_read_or_written(tmp_path, document):
    path = tmp_path / "x.safetensors"
    write_tensors(document["model"], path, {})
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(CheckpointError, match=r"x\.safetensors is not a whole safetensors file \(.*\); it may be"):
        read_tensors(path)
    with pytest.raises(CheckpointError, match=r"no such checkpoint file: .*gone\.safetensors"):
        read_tensors(tmp_path / "gone.safetensors")
    with pytest.raises(OSError, match="No such file"):
        write_tensors(document["model"], tmp_path / "gone" / "x.safetensors", {})


def test_an_archive_that_grows_a_thousand_times_is_not_unpacked(tmp_path):
    """Two gigabytes of zeros in two megabytes."""
    path = save({"a": torch.zeros(3)}, tmp_path / "x.pth", "zip")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "y.pth", "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            if not name.endswith("data/0"):
                new.writestr(name, old.read(name))
        with new.open(old.namelist()[0].partition("/")[0] + "/data/0", "w") as zeros:
            for _ in range(70):
                zeros.write(bytes(1 << 24))
    with pytest.raises(CheckpointError, match=r"y\.pth has [\d,]+ bytes, and would have 1,174,[\d,]+ when unpacked"):
        read_torch_file(tmp_path / "y.pth")


def test_tensors_may_share_memory_but_not_without_end(tmp_path):
    one = torch.zeros(1 << 20)
    check_memory({str(number): one for number in range(100)}, tmp_path)  # below a gigabyte nobody minds
    with pytest.raises(
        CheckpointError, match=r"holds 4,194,304 bytes of numbers under so many names .* need 1,258,291,2"
    ):
        check_memory({str(number): one for number in range(300)}, tmp_path)
    parts = torch.zeros(4 << 20).chunk(64)
    check_memory({str(number): part for number, part in enumerate(parts)}, tmp_path)


def test_numbers_that_cannot_be_computed_with():
    fine = {
        "a": torch.ones(2),
        "b": torch.ones(3).half(),
        "c": torch.ones(0),
        "d": torch.tensor(7),
        "e": torch.ones(1) > 0,
    }
    check_numbers(fine, "x")
    assert first_not_finite(fine) is None
    assert first_not_finite({"d": torch.tensor(7)}) is None
    for value in (float("nan"), float("inf"), -float("inf")):
        for dtype in FLOATS:
            bad = torch.arange(5).to(dtype)
            bad[3] = value
            assert first_not_finite(fine | {"y": bad, "z": bad}) == "y"
    assert first_not_finite(fine | {"y": torch.tensor([1e39], dtype=torch.float64)}) == "y"
    with pytest.raises(
        CheckpointError, match=r"^x: the weights are not finite, y is the first; .*an earlier checkpoint"
    ):
        check_numbers(fine | {"y": torch.tensor(float("nan"))}, "x")
    for dtype in (torch.float8_e5m2, torch.complex64, torch.bfloat16):
        if dtype == torch.bfloat16:
            check_numbers({"y": torch.ones(2).to(dtype)}, "x")
            continue
        with pytest.raises(
            CheckpointError, match=f"y holds numbers of type {str(dtype)[6:]}; weights are of float16, b"
        ):
            check_numbers({"y": torch.ones(2).to(dtype)}, "x")


def test_a_document_without_an_inner_table_is_the_table(document):
    assert inner_table(document) is document["model"]
    assert inner_table({"state_dict": {"a": 1}, "model": "r50"}) == {"a": 1}
    assert inner_table([1]) == [1]
