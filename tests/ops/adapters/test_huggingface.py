"""Models of transformers give on this operator what they gave before, forward and backward, and can be put back."""

import ast
import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from deformable_detr.ops.adapters import accelerate, restore
from deformable_detr.ops.adapters import huggingface as adapter
from deformable_detr.ops.msda import multi_scale_deformable_attention

# One family for each of the three ways in which models come to the attention.
WAYS = {"module": "deformable_detr", "attribute": "d_fine", "global": "rt_detr_v2"}


def floats(output):
    found = {}
    for name, value in output.items():
        if torch.is_tensor(value) and value.is_floating_point():
            found[name] = value.nan_to_num(posinf=1e6, neginf=-1e6)
    assert found
    return found


def run(family):
    with torch.no_grad():
        return floats(family.model(**family.inputs))


def train_run(family):
    """Gradients of everything in training mode; the same dropout every time."""
    torch.manual_seed(7)
    family.model.train().zero_grad()
    outputs = floats(family.model(**family.inputs))
    generator = torch.Generator().manual_seed(5)
    total = sum(
        (value * torch.randn(value.shape, generator=generator)).mean()
        for value in outputs.values()
        if value.requires_grad
    )
    total.backward()
    family.model.eval()
    return {name: p.grad.clone() for name, p in family.model.named_parameters() if p.grad is not None}


def assert_close(found, expected, tolerance=1e-4):
    """Relative to the largest element; gradients that are zero but for rounding are measured by the others."""
    assert found.keys() == expected.keys()
    largest = max(float(value.abs().max()) for value in expected.values())
    for name, value in expected.items():
        scale = max(float(value.abs().max()), 1e-3 * largest)
        assert float((found[name] - value).abs().max()) < tolerance * scale, name


class Spy:
    """The operator, counting its calls and keeping what it was last asked."""

    def __init__(self, monkeypatch, factor=1.0):
        self.calls, self.spatial_shapes, self.locations, self.factor = 0, None, None, factor
        self._run = multi_scale_deformable_attention
        monkeypatch.setattr(adapter, "multi_scale_deformable_attention", self)

    def __call__(self, value, spatial_shapes, locations, weights, **more):
        self.calls += 1
        self.spatial_shapes, self.locations = spatial_shapes, locations
        return self._run(value, spatial_shapes, locations, weights, **more) * self.factor


def test_outputs_and_gradients_stay(family, monkeypatch):
    before = run(family)
    assert accelerate(family.model) == (family.attentions, {})
    spy = Spy(monkeypatch)
    assert_close(run(family), before)
    assert spy.calls == len(family.attentions)
    restore(family.model)
    tolerance = 1e-3  # in float32 some of its gradients are sums that cancel
    if type(family.model).__name__ != "OmDetTurboForObjectDetection":  # which has parts that insist on float32
        inputs = {name: value.double() if value.is_floating_point() else value for name, value in family.inputs.items()}
        family, tolerance = family._replace(model=family.model.double(), inputs=inputs), 1e-9
    gradients = train_run(family)
    accelerate(family.model)
    assert_close(train_run(family), gradients, tolerance)
    assert spy.calls == 2 * len(family.attentions)
    assert any("sampling_offsets" in name and gradient.abs().max() > 0 for name, gradient in gradients.items())


def test_the_attention_matters(family, monkeypatch):
    """What the test above rests on: queries look at different places, some at none, and the outputs show it."""
    accelerate(family.model)
    before = run(family)
    spy = Spy(monkeypatch, factor=1.1)
    after = run(family)
    assert max(float((after[name] - before[name]).abs().max() / before[name].abs().max()) for name in before) > 1e-3
    inside = ((spy.locations > 0) & (spy.locations < 1)).all(-1).float().mean()
    assert 0.05 < inside < 0.995
    assert float((spy.locations - spy.locations.mean(1, keepdim=True)).std()) > 0.02


def test_restored_it_is_what_it_was(family):
    expected, text, keys = run(family), repr(family.model), list(family.model.state_dict())
    classes = [type(module) for module in family.model.modules()]
    attributes = [dict(vars(module)) for module in family.model.modules()]
    accelerate(family.model)
    assert repr(family.model) == text
    assert list(family.model.state_dict()) == keys
    assert all(isinstance(module, cls) for module, cls in zip(family.model.modules(), classes, strict=True))
    for _ in range(2):
        restore(family.model)
        assert [type(module) for module in family.model.modules()] == classes
        assert [dict(vars(module)) for module in family.model.modules()] == attributes
    for name, value in run(family).items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("name", WAYS.values(), ids=WAYS)
def test_twice_is_once_and_other_models_stay(name, make_family, monkeypatch):
    family, other = make_family(name), make_family(name)
    expected = run(other)
    assert accelerate(family.model) == accelerate(family.model) == (family.attentions, {})
    spy = Spy(monkeypatch, factor=0.0)
    found = run(other)
    assert spy.calls == 0
    for key, value in expected.items():
        assert torch.equal(found[key], value)
    run(family)
    assert spy.calls == len(family.attentions)
    restore(family.model)
    run(family)
    assert spy.calls == len(family.attentions)


@pytest.mark.parametrize("name", WAYS.values(), ids=WAYS)
def test_copies_and_pickles_are_accelerated_too(name, make_family, monkeypatch):
    family = make_family(name)
    expected = run(family)
    accelerate(family.model)
    spy = Spy(monkeypatch)
    for number, model in enumerate((copy.deepcopy(family.model), pickle.loads(pickle.dumps(family.model))), start=1):
        twin = family._replace(model=model)
        assert_close(run(twin), expected)
        assert spy.calls == number * len(family.attentions)
        restore(model)
        for key, value in run(twin).items():
            assert torch.equal(value, expected[key])
        assert not {type(module) for module in model.modules()} & {type(m) for m in accelerated(family.model)}


def accelerated(model):
    return [module for module in model.modules() if hasattr(type(module), "_before_acceleration")]


def test_wrapped_and_nested_models(make_family, monkeypatch):
    one, two = make_family("deformable_detr"), make_family("d_fine")
    wrapped = nn.ModuleDict({"first": nn.DataParallel(one.model), "second": nn.ModuleList([two.model])})
    report = accelerate(wrapped)
    assert report.replaced == (
        *(f"first.module.{name}" for name in one.attentions),
        *(f"second.0.{name}" for name in two.attentions),
    )
    spy = Spy(monkeypatch)
    run(one)
    run(two)
    assert spy.calls == len(one.attentions) + len(two.attentions)
    restore(two.model)
    run(two)
    assert spy.calls == len(one.attentions) + len(two.attentions)
    module = one.model.get_submodule(one.attentions[0])
    restore(module)
    assert accelerate(module) == (("",), {})


def test_hooks_and_saved_files(make_family, tmp_path):
    family = make_family("deformable_detr")
    expected, heard = run(family), []
    for name in family.attentions:
        family.model.get_submodule(name).register_forward_hook(lambda *event: heard.append(event[2].shape))
    accelerate(family.model)
    run(family)
    assert len(heard) == len(family.attentions)
    family.model.save_pretrained(tmp_path)
    again = family._replace(model=type(family.model).from_pretrained(tmp_path).eval())
    assert accelerated(again.model) == []
    for key, value in run(again).items():
        assert torch.equal(value, expected[key])


@pytest.mark.parametrize("name", ["rt_detr_v2", "d_fine"])
def test_discrete_sampling_keeps_its_own_path(name, make_family):
    family = make_family(name, decoder_method="discrete")
    with pytest.raises(ValueError, match=r"nothing in \w+ForObjectDetection was accelerated: .*layers.0.*'discrete'"):
        accelerate(family.model)
    both = nn.ModuleList([family.model, make_family("rt_detr").model])
    report = accelerate(both)
    assert list(report.left) == [f"0.{attention}" for attention in family.attentions]
    assert len(report.replaced) == 2


def test_a_method_changed_later_is_refused(make_family):
    family = make_family("rt_detr_v2")
    accelerate(family.model)
    family.model.get_submodule(family.attentions[0]).method = "discrete"
    with pytest.raises(ValueError, match="restore the model before"):
        run(family)


def test_a_model_without_such_attention_is_named():
    with pytest.raises(ValueError, match=r"nothing in Sequential can be accelerated: looked through 2 modules for Mul"):
        accelerate(nn.Sequential(nn.Linear(3, 4)))


def test_nothing_is_touched_when_nothing_can_be(make_family):
    family = make_family("rt_detr")
    for name in family.attentions:
        module = family.model.get_submodule(name)
        module.forward = module.forward  # as kernels and hooks of other libraries do
    with pytest.raises(ValueError, match="its forward has been replaced"):
        accelerate(family.model)
    assert accelerated(family.model) == []


def test_an_unknown_signature_is_left_alone():
    def forward(self, value, shapes):
        return value

    forward.__module__, forward.__qualname__ = (
        "transformers.models.x.modeling_x",
        "MultiScaleDeformableAttention.forward",
    )
    future = type("MultiScaleDeformableAttention", (nn.Module,), {"forward": forward})
    with pytest.raises(ValueError, match=r"it takes \(self, value, shapes\); known here is \(self, value, value_sp"):
        accelerate(nn.Sequential(future()))


def test_a_class_changed_in_between_is_not_restored(make_family):
    family = make_family("rt_detr")
    accelerate(family.model)
    module = family.model.get_submodule(family.attentions[0])
    ours = type(module)
    module.__class__ = type("Other", (ours,), {})
    with pytest.raises(ValueError, match="changed again after accelerate"):
        restore(family.model)
    assert len(accelerated(family.model)) == 2
    module.__class__ = ours
    restore(family.model)
    assert accelerated(family.model) == []


@pytest.mark.parametrize("name", ["deformable_detr", "d_fine", "rt_detr_v2", "mask2former"])
def test_autocast_keeps_types_and_precision(name, make_family):
    family = make_family(name)
    exact = run(family)
    with torch.autocast("cpu", torch.bfloat16):
        before = run(family)
        accelerate(family.model)
        after = run(family)
    for key, value in after.items():
        assert value.dtype == before[key].dtype, key
        error, allowed = (value - exact[key]).abs().mean(), (before[key] - exact[key]).abs().mean()
        assert error <= 2 * allowed + 1e-6, key


@pytest.mark.parametrize("name", WAYS.values(), ids=WAYS)
def test_half_precision_models_run(name, make_family):
    family = make_family(name)
    accelerate(family.model.bfloat16())
    inputs = family.inputs | {"pixel_values": family.inputs["pixel_values"].bfloat16()}
    assert all(value.isfinite().all() for value in run(family._replace(inputs=inputs)).values())


def test_transformers_is_not_imported():
    tree = ast.parse(Path(adapter.__file__).read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert imports
    assert not any("transformers" in ast.unparse(node) for node in imports)


@pytest.mark.compile
@pytest.mark.parametrize("name", [*WAYS.values(), "mask2former"])
def test_compiles_where_the_model_does(name, make_family, monkeypatch):
    """The attention with its projections in one graph, and that graph holds the operator."""
    family = make_family(name)
    attention = family.model.get_submodule(family.attentions[-1].removesuffix(".attn"))
    seen = []
    handle = attention.register_forward_pre_hook(lambda _, args, kwargs: seen.append((args, kwargs)), with_kwargs=True)
    run(family)
    handle.remove()
    args, kwargs = seen[0]
    expected = attention(*args, **kwargs)[0]
    accelerate(family.model)
    torch._dynamo.reset()
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*args, **kwargs)[0], expected, rtol=1e-4, atol=1e-4)

    def nothing(value, spatial_shapes, locations, weights, **more):
        return value.new_zeros(*locations.shape[:3], value.shape[3]) + 7

    monkeypatch.setattr(adapter, "multi_scale_deformable_attention", nothing)
    torch._dynamo.reset()
    found = torch.compile(attention, fullgraph=True, backend="aot_eager")(*args, **kwargs)[0]
    torch.testing.assert_close(found, attention(*args, **kwargs)[0])
    assert not torch.allclose(found, expected, atol=1e-2)
