from dataclasses import replace

import pytest
import torch

from deformable_detr.training import products as module
from deformable_detr.training.products import Trial, products, products_of_run, try_products, with_products

CPU = torch.device("cpu")


class Listener:
    def __init__(self):
        self.said = []

    def say(self, message):
        self.said.append(message)

    def update(self, *_):
        raise AssertionError("nothing is counted here")


def setting():
    return torch.backends.mkldnn.matmul.fp32_precision


def test_a_trial_leaves_everything_as_it_was():
    before, state = setting(), torch.get_rng_state()
    trial = try_products()
    assert trial.gain > 0
    assert trial.error > 0
    assert setting() == before
    assert torch.equal(torch.get_rng_state(), state)


def test_the_switch_holds_within_its_context_alone():
    before = setting()
    with products("onednn"):
        assert setting() == "bf16"
        with products("auto"):
            assert setting() == "bf16"
        with products("pytorch"):
            assert setting() == "none"
        assert setting() == "bf16"
    assert setting() == before
    with pytest.raises(RuntimeError, match="of the training"), products("onednn"):
        raise RuntimeError("of the training")
    assert setting() == before


@pytest.mark.parametrize(
    ("trial", "chosen", "said"),
    [
        (Trial(1.9, 1.1), "onednn", "products by oneDNN, 1.9 times as fast here as PyTorch's choice, and as exact"),
        (Trial(1.9, 3000.0), "pytorch", "products by PyTorch's choice: those of oneDNN err 3000 times as much"),
        (Trial(1.02, 1.0), "pytorch", "products by PyTorch's choice: oneDNN is 1.0 times as fast here"),
        (None, "pytorch", None),
    ],
)
def test_what_is_faster_and_exact_is_chosen(tiny_config, monkeypatch, trial, chosen, said):
    monkeypatch.setattr(module, "try_products", lambda: trial)
    config, found = with_products(tiny_config, CPU)
    assert config.compute.products == chosen
    assert found is None if said is None else found.startswith(said)
    assert with_products(config, CPU) == (config, None)
    assert with_products(tiny_config, torch.device("cuda"))[0].compute.products == "pytorch"


def test_a_run_on_another_processor_stays_exact(monkeypatch):
    listener = Listener()
    monkeypatch.setattr(module, "try_products", lambda: Trial(3.0, 1.0))
    with products_of_run("onednn", CPU, listener):
        assert setting() == "bf16"
    assert listener.said == []
    monkeypatch.setattr(module, "try_products", lambda: Trial(3.0, 900.0))
    with products_of_run("onednn", CPU, listener):
        assert setting() == "none"
    assert listener.said == [
        "this run began with products by oneDNN, which are not as exact here: PyTorch's choice is used"
    ]
    before = setting()
    with products_of_run("onednn", torch.device("cuda"), listener):
        assert setting() == before


def test_without_the_switch_all_is_as_it_was(tiny_config, monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert try_products() is None
    with products("onednn"):
        assert setting() != "bf16"
    assert with_products(replace(tiny_config), CPU)[1] is None
