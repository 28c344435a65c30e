import pytest

from deformable_detr.core.devices import choose_device
from deformable_detr.core.errors import BackendError


def test_devices_that_are_not_here_are_refused():
    assert choose_device("cpu").type == "cpu"
    assert choose_device("auto").type in ("cpu", "cuda")
    for name, message in [("gpu", "no such device"), ("mps", "not supported"), ("cuda:99", "torch sees")]:
        with pytest.raises(BackendError, match=message):
            choose_device(name)
