"""Objects of other programs in files of weights: their numbers are read, and nothing of theirs runs."""

import io
import math
import sys
import time
import types

import numpy as np
import pytest
import torch

from deformable_detr.core.errors import CheckpointError
from deformable_detr.core.stand_ins import ForeignArray, ForeignType, with_tensors
from deformable_detr.core.torch_files import read_torch_file


@pytest.fixture
def elsewhere(monkeypatch):
    """make("util.slconfig", "SLConfig", bases) -> a class that a file can name, of a module that is not here."""

    def make(module, name, *bases):
        for part in (module.split(".")[0], module):
            monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
        kind = type(name, bases, {"__module__": module, "__qualname__": name})
        setattr(sys.modules[module], name, kind)
        return kind

    return make


def test_settings_objects_become_tables(tmp_path, elsewhere):
    inner, outer = elsewhere("util.slconfig", "ConfigDict", dict), None
    outer = type("SLConfig", (), {"__module__": "util.slconfig", "__qualname__": "SLConfig"})
    sys.modules["util.slconfig"].SLConfig = outer
    args = outer()
    args._cfg_dict = inner(num_queries=7, nested=inner(lr=0.1))
    torch.save({"model": {"a": torch.ones(2)}, "args": args}, tmp_path / "x.pth")
    read = read_torch_file(tmp_path / "x.pth")
    assert dict(vars(read["args"])["_cfg_dict"]) == {"num_queries": 7, "nested": {"lr": 0.1}}
    assert not isinstance(read["args"], outer)


def test_logs_of_openmmlab_do_not_matter(tmp_path, elsewhere):
    buffer = elsewhere("mmengine.logging.history_buffer", "HistoryBuffer")
    buffer.mean = lambda self: 1 / 0
    buffer.mean.__module__, buffer.mean.__qualname__ = buffer.__module__, "HistoryBuffer.mean"
    logged = buffer()
    logged._log_history, logged.methods = np.arange(3.0), {"mean": buffer.mean}
    document = {"state_dict": {"a": torch.ones(2)}, "message_hub": {"log_scalars": {"loss": logged}}}
    torch.save(document, tmp_path / "x.pth")
    assert torch.equal(read_torch_file(tmp_path / "x.pth")["state_dict"]["a"], torch.ones(2))


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i4", "i8", "u1", "?"])
@pytest.mark.parametrize("shape", [(3, 5), (), (0, 4), (2, 3, 4)])
def test_arrays_become_tensors(tmp_path, dtype, shape):
    array = np.arange(math.prod(shape)).astype(dtype).reshape(shape)
    content = {"model": {"a": array, "columns": array.copy(order="F"), "b": torch.ones(1)}}
    torch.save(content, tmp_path / "x.pth")
    read = read_torch_file(tmp_path / "x.pth")["model"]
    for name in ("a", "columns"):
        assert torch.equal(read[name], torch.from_numpy(array))


def test_arrays_of_objects_and_of_other_machines_are_no_tensors(tmp_path):
    odd = {"objects": np.array([{"a": 1}], dtype=object), "big_endian": np.arange(3).astype(">f4")}
    torch.save({"model": odd}, tmp_path / "x.pth")
    read = read_torch_file(tmp_path / "x.pth")["model"]
    assert not any(isinstance(one, torch.Tensor) for one in read.values())


def test_numbers_that_do_not_fit_their_shape_are_refused():
    kind = ForeignType("f4")
    kind.__setstate__((3, "<", None))
    for shape in ((1000, 1000), (-1, 2), (2.0, 1)):
        with pytest.raises(ValueError, match="8 bytes cannot be an array of shape"):
            ForeignArray().__setstate__((1, shape, kind, False, bytes(8)))


def test_a_file_of_such_numbers_is_damaged(tmp_path):
    file = io.BytesIO()
    torch.save({"model": {"a": np.arange(6, dtype=np.float32)}}, file, _use_new_zipfile_serialization=False)
    content = file.getvalue()
    assert content.count(b"K\x06\x85") == 1  # the shape, (6,)
    (tmp_path / "x.pth").write_bytes(content.replace(b"K\x06\x85", b"K\x07\x85"))
    with pytest.raises(CheckpointError, match=r"x\.pth is not a whole file of PyTorch weights"):
        read_torch_file(tmp_path / "x.pth")


def test_tables_that_are_shared_are_looked_through_once(tmp_path):
    """A few kB refer to one table a million times and more."""
    innermost = {f"c{number}": number for number in range(300)}
    middle = {f"b{number}": innermost for number in range(300)}
    document = {f"a{number}": middle for number in range(300)}
    visits = []

    class Counting(dict):
        def items(self):
            visits.append(len(self))
            return super().items()

    with_tensors({name: Counting(value) for name, value in {"model": innermost}.items()})
    shared = Counting(innermost)
    with_tensors({f"a{one}": {f"b{two}": shared for two in range(30)} for one in range(30)})
    assert visits == [300, 300]
    torch.save(document, tmp_path / "it.pth")
    assert (tmp_path / "it.pth").stat().st_size < 30_000
    began = time.process_time()
    read_torch_file(tmp_path / "it.pth")
    assert time.process_time() - began < 2
