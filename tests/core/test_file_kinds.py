"""What files are, whatever their names say."""

import pytest
import torch
from safetensors.torch import save_file

from deformable_detr.core.errors import CheckpointError
from deformable_detr.core.file_kinds import kind_of


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n", "is a text"),
        (b"epoch 3: loss 0.25\n", "is a text, not weights"),
        (b"\n<!DOCTYPE html><html>Google Drive can't scan", "is a web page, not weights; Google Drive"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "only stands for a file that Git LFS keeps"),
        (b"\x89HDF\r\n\x1a\n\0\0\0", "is an HDF5 file"),
        (b"\x80\x04\x95\0", "is a pickle, but not one of PyTorch's"),
        (b"\1\2\0", "is not a file of PyTorch weights"),
    ],
)
def test_files_of_other_kinds_are_described(tmp_path, content, message):
    (tmp_path / "x.pth").write_bytes(content)
    kind = kind_of(tmp_path / "x.pth")
    assert kind.format == "other"
    assert not kind.is_torch
    assert kind.description.startswith(message)


@pytest.mark.parametrize(("new", "expected"), [(True, "torch archive"), (False, "torch pickle")])
def test_both_formats_of_torch(tmp_path, new, expected):
    torch.save({"a": torch.ones(2)}, tmp_path / "x", _use_new_zipfile_serialization=new)
    kind = kind_of(tmp_path / "x")
    assert kind.format == expected
    assert kind.is_torch


def test_an_archive_is_told_by_four_bytes(tmp_path):
    (tmp_path / "x.pth").write_bytes(b"PK\x03\x04 and then no archive")
    assert kind_of(tmp_path / "x.pth").is_torch


@pytest.mark.parametrize("start", [b"PK", b"\x80\x4a"])
def test_the_length_of_a_header_says_nothing_about_the_kind(tmp_path, start):
    path, tensors = tmp_path / "x.pth", {"a": torch.arange(6.0).view(2, 3)}
    save_file(tensors, path, metadata={"filler": ""})
    missing = int.from_bytes(start, "little") - int.from_bytes(path.read_bytes()[:8], "little")
    save_file(tensors, path, metadata={"filler": missing * "x"})
    assert path.read_bytes().startswith(start)
    assert kind_of(path).format == "safetensors"


def test_noise_goes_by_its_name(tmp_path):
    for name, message in (("x.onnx", "is an ONNX model"), ("x.safetensors", "is not a whole safetensors file")):
        (tmp_path / name).write_bytes(bytes(100))
        assert kind_of(tmp_path / name).description.startswith(message)


def test_no_file(tmp_path):
    for path in (tmp_path / "gone.pth", tmp_path):
        with pytest.raises(CheckpointError, match="no such checkpoint file"):
            kind_of(path)
