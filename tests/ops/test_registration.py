"""The registered operator as PyTorch uses it: schema, shapes without data, gradients, autocast, capture."""

import io

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from deformable_detr.core.errors import BackendError
from deformable_detr.ops import (
    cpu,
    multi_scale_deformable_attention,
    multi_scale_deformable_attention_from_projection,
    reference,
)
from deformable_detr.ops import (
    registration as library,
)

SHAPES = ((7, 5), (4, 3))
FLAT, POINTS = [7, 5, 4, 3], [3, 2]
BATCH, QUERIES, HEADS, HEAD_DIM, SAMPLES = 2, 6, 3, 8, 5

needs_kernel = pytest.mark.skipif(cpu.missing() is not None, reason="no compiler was found at installation")


def make(form, dtype=torch.float64, requires_grad=False, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.rand(shape, generator=generator, dtype=torch.float64).to(dtype)

    value = random(BATCH, 47, HEADS, HEAD_DIM) - 0.5
    if form == "sample":
        others = random(BATCH, QUERIES, HEADS, SAMPLES, 2), random(BATCH, QUERIES, HEADS, SAMPLES)
    else:
        others = random(BATCH, QUERIES, 2, 4), random(BATCH, QUERIES, HEADS * SAMPLES * 3) - 0.5
    return tuple(tensor.requires_grad_(requires_grad) for tensor in (value, *others))


OPS = {"sample": library.sample, "attend": library.attend}
forms = pytest.mark.parametrize("form", OPS)


@needs_kernel
@forms
@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # of the check itself
def test_pytorch_finds_nothing_wrong_with_the_registration(form, requires_grad):
    torch.library.opcheck(OPS[form], (*make(form, torch.float32, requires_grad), FLAT, POINTS))


@needs_kernel
@forms
def test_gradients_are_those_of_finite_differences(form):
    def run(*inputs):
        return OPS[form](*inputs, FLAT, POINTS)

    torch.autograd.gradcheck(run, make(form, requires_grad=True))


@needs_kernel
@forms
def test_a_second_derivative_is_refused_and_says_where_there_is_one(form):
    inputs = make(form, requires_grad=True)
    (gradient,) = torch.autograd.grad(OPS[form](*inputs, FLAT, POINTS).sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative; backend='reference' has"):
        gradient.sum().backward()


@needs_kernel
@forms
def test_under_autocast_nothing_is_lowered_and_halves_are_raised(form):
    value, second, third = make(form, torch.float32)
    expected = OPS[form](value.bfloat16(), second, third, FLAT, POINTS)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(OPS[form](value.bfloat16(), second, third, FLAT, POINTS), expected)
        assert OPS[form](value, second, third, FLAT, POINTS).dtype == torch.float32
        halves = OPS[form](value, second.bfloat16(), third.bfloat16(), FLAT, POINTS)
    raised = OPS[form](value, second.bfloat16().float(), third.bfloat16().float(), FLAT, POINTS)
    assert torch.equal(halves, raised)


def test_locations_stay_exact_where_a_model_runs_under_autocast():
    """A map of 1000 columns: a bfloat16 could not tell its last four pixels apart."""
    shapes = ((2, 1000),)
    value = torch.arange(2000.0).remainder(1000).view(1, 2000, 1, 1).expand(1, 2000, 1, 4).contiguous()
    reference_points = torch.tensor([[[[997.25 / 1000, 0.5]]]])
    projection = torch.zeros(1, 1, 3)
    with torch.autocast("cpu", torch.bfloat16):
        seen = multi_scale_deformable_attention_from_projection(
            value, shapes, reference_points, projection, num_points=1
        )
    torch.testing.assert_close(seen, torch.full((1, 1, 1, 4), 996.75), rtol=0, atol=1e-3)


@needs_kernel
@forms
def test_what_is_not_needed_is_not_computed(form, monkeypatch):
    asked = []
    call = cpu._call

    def record(what, value, queries, shapes, points, tensors):
        given = tensors._asdict().items()
        asked.append({name for name, tensor in given if name.startswith("grad_") and tensor is not None})
        call(what, value, queries, shapes, points, tensors)

    monkeypatch.setattr(cpu, "_call", record)
    inputs = make(form)
    inputs[2].requires_grad_()
    OPS[form](*inputs, FLAT, POINTS).sum().backward()
    assert asked == [set(), {"grad_weights" if form == "sample" else "grad_projection"}]
    assert inputs[2].grad.abs().sum() > 0


@needs_kernel
@forms
def test_checkpointed_it_gives_the_same_gradients(form):
    plain, again = make(form, requires_grad=True), make(form, requires_grad=True)

    def run(*inputs):
        return OPS[form](*inputs, FLAT, POINTS).square().sum()

    run(*plain).backward()
    checkpoint(run, *again, use_reentrant=False).backward()
    assert all(torch.equal(one.grad, other.grad) for one, other in zip(plain, again, strict=True))


@forms
def test_without_a_kernel_the_registered_operator_still_runs_forward(form, monkeypatch):
    monkeypatch.setattr(cpu, "_find", lambda: (None, "it was not built"))
    inputs = make(form, requires_grad=True)
    result = OPS[form](*inputs, FLAT, POINTS)
    torch.testing.assert_close(result, getattr(reference, form)(*inputs, FLAT, POINTS))
    with pytest.raises(BackendError, match="needs a compiled kernel: it was not built"):
        result.sum().backward()


def test_shapes_without_data_are_enough():
    value, locations, weights = (tensor.to("meta") for tensor in make("sample"))
    assert library.sample(value, locations, weights, FLAT, POINTS).shape == (BATCH, QUERIES, HEADS, HEAD_DIM)


class Attention(torch.nn.Module):
    """The public functions in a program to capture."""

    def forward(self, value, locations, weights, around, projection):
        return multi_scale_deformable_attention(
            value, SHAPES, locations, weights, num_points=tuple(POINTS)
        ) + multi_scale_deformable_attention_from_projection(
            value, SHAPES, around, projection, num_points=tuple(POINTS)
        )


def attention_inputs(requires_grad=False):
    value, *others = make("sample", torch.float32, requires_grad)
    return value, *others, *make("attend", torch.float32, requires_grad)[1:]


@pytest.mark.slow
@pytest.mark.compile
@needs_kernel
def test_compiles_into_one_graph_with_its_gradient():
    plain, compiled = attention_inputs(requires_grad=True), attention_inputs(requires_grad=True)
    Attention()(*plain).square().sum().backward()
    torch.compile(Attention(), fullgraph=True)(*compiled).square().sum().backward()
    for one, other in zip(plain, compiled, strict=True):
        torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.compile
@needs_kernel
def test_a_new_size_of_image_needs_no_new_program():
    programs = []

    def count(graph, inputs):
        programs.append(graph)
        return graph

    def run(value, locations, weights, height):
        return multi_scale_deformable_attention(value, ((height, 5),), locations, weights)

    compiled = torch.compile(run, fullgraph=True, dynamic=True, backend=count)
    for height in (7, 9, 12):
        value = torch.randn(2, height * 5, 3, 8)
        locations, weights = torch.rand(2, 6, 3, 1, 4, 2), torch.rand(2, 6, 3, 1, 4)
        torch.testing.assert_close(compiled(value, locations, weights, height), run(value, locations, weights, height))
    assert len(programs) == 1


@pytest.mark.compile
@needs_kernel
def test_exports_saves_and_loads():
    inputs = attention_inputs()
    program = torch.export.export(Attention(), inputs)
    names = {str(node.target) for node in program.graph.nodes}
    assert {"deformable_detr.sample.default", "deformable_detr.attend.default"} <= names
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    torch.testing.assert_close(torch.export.load(file).module()(*inputs), Attention()(*inputs))


@needs_kernel
@forms
def test_whoever_watches_pytorch_sees_the_operator(form):
    """Without a watcher the kernel is called directly."""
    inputs = make(form, torch.float32)
    name = f"deformable_detr::{form}"

    def run(value, second, third):
        return getattr(library, f"{form}_on_cpu")(value, second, third, FLAT, POINTS)

    class Watcher(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(function.name())
            return function(*args, **(kwargs or {}))

    seen = []
    with Watcher():
        run(*inputs)
    assert seen == [name]
    with torch.autograd.profiler.profile() as profile:
        run(*inputs)
    assert [event.name for event in profile.function_events].count(name) == 1
    for mode in ("real", "symbolic"):
        graph = make_fx(run, tracing_mode=mode)(*inputs).graph
        assert [node.target for node in graph.nodes].count(OPS[form]) == 1
    trained = make(form, torch.float32, requires_grad=True)
    run(*trained).sum().backward()
    assert all(tensor.grad is not None for tensor in trained)
    with torch.no_grad():
        assert not run(*trained).requires_grad


@needs_kernel
@forms
def test_the_direct_way_gives_the_same_bits(form, monkeypatch):
    calls = []
    monkeypatch.setattr(library, "_is_watched", lambda *tensors: calls.append(len(tensors)) or True)
    inputs = make(form, torch.float32)
    through = getattr(library, f"{form}_on_cpu")(*inputs, FLAT, POINTS)
    monkeypatch.undo()
    assert calls == [3]
    assert torch.equal(getattr(library, f"{form}_on_cpu")(*inputs, FLAT, POINTS), through)
    assert torch.equal(getattr(cpu, form)(*inputs, FLAT, POINTS), through)
