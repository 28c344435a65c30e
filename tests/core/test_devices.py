import pytest
import torch

from deformable_detr.core.devices import choose_device, has_bfloat16
from deformable_detr.core.errors import BackendError


def test_devices_that_are_not_here_are_refused():
    assert choose_device("cpu").type == "cpu"
    assert choose_device("auto").type in ("cpu", "cuda")
    for name, message in [("gpu", "no such device"), ("mps", "not supported"), ("cuda:99", "torch sees")]:
        with pytest.raises(BackendError, match=message):
            choose_device(name)


def test_what_onednn_may_not_use_is_not_there(monkeypatch):
    """`ONEDNN_MAX_CPU_ISA` holds it to older instructions, and packed weights in bfloat16 are then an error in it."""
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    assert not has_bfloat16()
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    assert has_bfloat16()
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    assert not has_bfloat16()
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert has_bfloat16()
