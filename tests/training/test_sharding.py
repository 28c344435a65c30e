"""What each process keeps and what all of them gather: two processes on this machine, talking by gloo."""

import json
from copy import deepcopy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from deformable_detr.core.distributed import ALONE, joined
from deformable_detr.core.errors import ConfigError
from deformable_detr.data.batch import stand_in
from deformable_detr.data.preprocessing import Preprocessing
from deformable_detr.inference.detector import Detector
from deformable_detr.models import DeformableDETR, build
from deformable_detr.training.ema import EMA, averaging_copy
from deformable_detr.training.freezing import freeze, to_training_mode
from deformable_detr.training.optimizer import clip_gradients
from deformable_detr.training.setup import RunState
from deformable_detr.training.sharding import (
    cut_like,
    cut_like_those_of,
    equally_many,
    gather_into,
    gathered,
    local_shard,
    shard,
)
from tests.processes import Group

CPU = torch.device("cpu")


def share(rank):
    """Three images for the first process and two for the other, each padded differently."""
    count = 3 - rank
    padding = torch.zeros(count, 48, 80, dtype=torch.bool)
    for number, mask in enumerate(padding):
        mask[40 - 8 * number :] = True
        mask[:, 64 + 3 * number :] = True
    images = torch.randn(count, 3, 48, 80, generator=torch.Generator().manual_seed(rank))
    return images * ~padding[:, None], padding


def backward(model):
    """From one process' images on the model as it is."""

    def of(rank):
        output = model(*share(rank))
        sum(one.logits.square().sum() + one.boxes.sum() for one in output.layers).backward()

    return of


def grads_of(model):
    return {name: one.grad for name, one in model.named_parameters() if one.grad is not None}


def far(some, others):
    assert some.keys() == others.keys()
    return max(float((some[n] - others[n]).abs().max() / (1 + others[n].abs().max())) for n in some)


def compare(config, frozen, ranks):
    """With networks that are whole on every process."""
    torch.manual_seed(1)
    model = build(config, load_backbone_weights=False)
    freeze(model, frozen)
    plain, copy = deepcopy(model), averaging_copy(model)
    names = set(dict(model.named_parameters()))
    shard([model, copy], ranks, CPU)
    average, truth = EMA(model, 0.5, copy), EMA(plain, 0.5)
    assert isinstance(model, DeformableDETR)
    assert not any(one.requires_grad for one in copy.parameters())
    wholes = gathered(model.state_dict(), keep=True)
    assert all(torch.equal(wholes[name], tensor) for name, tensor in plain.state_dict().items())
    assert gathered(model.state_dict(), keep=False) == {}

    to_training_mode(model, frozen)
    if ranks.rank == 1 and config.features == "padded":
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.fill_(1000.0)  # the other one's are what counts
    backward(model)(ranks.rank)
    sums = {}
    for rank in range(ranks.size):
        alone = deepcopy(plain)
        to_training_mode(alone, frozen)
        backward(alone)(rank)
        for name, grad in grads_of(alone).items():
            sums[name] = sums.get(name, 0) + grad / ranks.size
    for name, parameter in plain.named_parameters():
        parameter.grad = sums.get(name)
    report = {"gradients": far(gathered(grads_of(model), keep=True), sums), "num_gradients": len(sums)}
    means = [buffer for name, buffer in model.named_buffers() if name.endswith("running_mean")]
    report["statistics"] = max(float(one.abs().max()) for one in means)
    norms = clip_gradients(model, 0.5), clip_gradients(plain, 0.5)
    report["norms"] = norms
    report["clipped"] = far(gathered(grads_of(model), keep=True), sums)

    with torch.no_grad():
        for parameter in [*model.parameters(), *plain.parameters()]:
            parameter.mul_(0.25)
    average.update()
    truth.update()
    found = gathered(copy.state_dict(), keep=True)
    report["average"] = far(*({n: d[n] for n in names} for d in (found, truth.model.state_dict())))

    other = build(config, load_backbone_weights=False)
    gather_into(other, copy)
    report["copied"] = far(*({n: d[n] for n in names} for d in (other.state_dict(), found)))
    moved = {name: tensor + 1 for name, tensor in found.items()}
    copy.load_state_dict(cut_like_those_of(copy, moved))
    report["restored"] = far(gathered(copy.state_dict(), keep=True), moved)
    report["evaluated"] = float(other.eval()(*share(0)).final.logits.sum())
    kept = sum(local_shard(parameter).numel() for parameter in model.parameters())
    report["kept"], report["all"] = kept, sum(parameter.numel() for parameter in plain.parameters())
    return report


def judged_statistics(tiny, ranks):
    """Of what is evaluated without shards, each process having seen images of its own."""
    model = build(tiny, load_backbone_weights=False)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.fill_(1.0 + ranks.rank)
    detector = Detector(model, ["a", "b", "c"], [1, 2, 3], Preprocessing(), device="cpu")
    learner = SimpleNamespace(sharded=False, ema=None)
    whole = SimpleNamespace(learner=learner, ranks=ranks, kept=model, detector=detector)
    means = [one for name, one in RunState.judged(whole).model.named_buffers() if name.endswith("running_mean")]
    return sorted({float(value) for mean in means for value in mean})


def tell(tiny, folder):
    """Write down what this process finds."""
    with joined("cpu") as ranks:
        told = {
            "judged": judged_statistics(tiny, ranks),
            "padded": compare(replace(tiny, dropout=0.0), (), ranks),
            "per_image": compare(replace(tiny, dropout=0.0, features="per_image"), ("backbone",), ranks),
            "parts": len(equally_many([stand_in()] * (1 + 2 * ranks.rank), ranks)),
        }
        (folder / f"{ranks.rank}.json").write_text(json.dumps(told))


@pytest.fixture(scope="module")
def told(tiny_config, tmp_path_factory):
    """What each of two processes reports; shapes are checked at every call there, too."""
    folder = tmp_path_factory.mktemp("told")
    with Group(2, tell, replace(tiny_config.model, num_classes=3), folder, folder=folder / "group") as processes:
        assert processes.wait() == 0, processes.said
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("features", ["padded", "per_image"])
def test_gradients_are_the_mean_of_the_processes_though_they_have_different_numbers_of_images(told, features):
    for one in (process[features] for process in told):
        assert one["gradients"] < 1e-5
        assert one["num_gradients"] > 30


@pytest.mark.slow
@pytest.mark.parametrize("features", ["padded", "per_image"])
def test_the_norm_to_clip_is_that_of_all_parts(told, features):
    for one in (process[features] for process in told):
        assert one["norms"][0] == pytest.approx(one["norms"][1], rel=1e-5)
        assert one["norms"][0] > 0.5  # or nothing was clipped
        assert one["clipped"] < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("features", ["padded", "per_image"])
def test_the_average_is_sharded_alike_and_gathered_and_put_back(told, features):
    for one in (process[features] for process in told):
        assert one["average"] < 1e-6
        assert one["copied"] == one["restored"] == 0
    assert told[0][features]["evaluated"] == told[1][features]["evaluated"]


@pytest.mark.slow
def test_each_process_keeps_its_part(told):
    for features in ("padded", "per_image"):
        kept = [process[features]["kept"] for process in told]
        assert sum(kept) == told[0][features]["all"]
        # What has an odd number of rows is not halved.
        assert kept[1] <= kept[0] < 1.1 * kept[1]


@pytest.mark.slow
def test_what_batch_norm_learns_is_the_first_process_own(told):
    assert told[1]["padded"]["statistics"] < 100


@pytest.mark.slow
def test_all_processes_have_equally_many_parts_of_a_step(told):
    assert [process["parts"] for process in told] == [3, 3]
    assert len(equally_many([stand_in()], ALONE)) == 1


def test_without_shards_all_is_as_it_was():
    model = nn.Linear(3, 2)
    weights = {"weight": torch.ones(2, 3), "unknown": torch.ones(1)}
    assert cut_like_those_of(model, weights) == weights
    copied = cut_like(weights["weight"], model.weight)
    assert torch.equal(copied, weights["weight"])
    assert copied.data_ptr() != weights["weight"].data_ptr()
    assert local_shard(model.weight) is model.weight
    state = model.state_dict()
    assert gathered(state, keep=True).keys() == state.keys()
    assert all(torch.equal(one, state[name]) for name, one in gathered(state, keep=True).items())


def test_a_number_without_an_axis_is_refused():
    model = nn.Linear(2, 2)
    model.gain = nn.Parameter(torch.tensor(1.0))
    with pytest.raises(ConfigError, match="1 parameters have no axis to cut, such as gain; set sharded=false"):
        shard([model], ALONE, torch.device("cpu"))


@pytest.mark.slow
def test_all_judge_the_statistics_that_the_first_one_saves(told):
    assert [process["judged"] for process in told] == [[1.0], [1.0]]
