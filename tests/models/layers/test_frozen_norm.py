"""Convolutions with folded norms equal convolutions and norms apart: values, gradients, names of weights."""

import copy
import pickle

import pytest
import timm
import torch
from timm.layers.norm_act import freeze_batch_norm_2d
from torch import nn

from deformable_detr.models.layers.frozen_norm import (
    FoldedConvolution,
    FoldedNorm,
    convolved,
    fold_frozen_norms,
    is_frozen_norm,
    is_matrix_product,
    traced,
)


def network(name="mobilenetv2_050"):
    """With statistics that are no zeros and ones."""
    torch.manual_seed(0)
    body = freeze_batch_norm_2d(timm.create_model(name, features_only=True, pretrained=False, out_indices=(2, 3)))
    for module in body.modules():
        if is_frozen_norm(module):
            for buffer, low in ((module.weight, 0.5), (module.running_var, 0.5), (module.bias, -0.5)):
                buffer.uniform_(low, low + 1)
            module.running_mean.uniform_(-0.5, 0.5)
    return body


def images(dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, 61, 83, generator=generator).to(dtype).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", ["mobilenetv2_050", "resnet18", "efficientnet_lite0"])
def test_values_and_gradients_stay(name):
    plain = network(name).double()
    folded = copy.deepcopy(plain)
    fold_frozen_norms(folded)
    assert sum(isinstance(one, FoldedConvolution) for one in folded.modules()) >= 15
    assert folded.state_dict().keys() == plain.state_dict().keys()
    results = []
    for body in (plain, folded):
        inputs = images(torch.float64).requires_grad_()
        maps = body(inputs)
        sum((one * torch.linspace(-1, 1, one.numel()).view(one.shape)).sum() for one in maps).backward()
        results.append((maps, inputs.grad, {name: one.grad for name, one in body.named_parameters()}))
    (maps, of_inputs, of_weights), (found, of_found, of_folded) = results
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-9) for a, b in zip(maps, found, strict=True))
    torch.testing.assert_close(of_found, of_inputs, rtol=1e-8, atol=1e-8)
    for key, grad in of_weights.items():
        if grad is None:  # of a stage whose map nobody asked for
            assert of_folded[key] is None
            continue
        torch.testing.assert_close(of_folded[key], grad, rtol=1e-8, atol=1e-7 * float(grad.abs().max()))


def test_weights_that_are_loaded_afterwards_count():
    folded, other = network().double(), network().double()
    fold_frozen_norms(folded)
    for one in other.state_dict().values():
        if one.is_floating_point():
            one.mul_(1.3)
    folded.load_state_dict(other.state_dict())
    folded.load_state_dict(other.state_dict() | {"bn1.num_batches_tracked": torch.tensor(3)})
    inputs = images(torch.float64)
    torch.testing.assert_close(folded(inputs)[1], other(inputs)[1])


def test_copies_are_of_their_own():
    folded = network()
    fold_frozen_norms(folded)
    for twin in (copy.deepcopy(folded), pickle.loads(pickle.dumps(folded))):
        before = folded(images())[1]
        assert torch.equal(twin(images())[1], before)
        for buffer in twin.buffers():
            buffer.mul_(1.5)
        assert torch.equal(folded(images())[1], before)
        assert not torch.equal(twin(images())[1], before)


def test_only_norms_that_are_frozen_and_alone_are_folded():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.third = (nn.Conv2d(3, 3, 1) for _ in range(3))
            self.learning, self.frozen = nn.BatchNorm2d(3), freeze_batch_norm_2d(nn.BatchNorm2d(3))

        def forward(self, inputs):
            maps = self.learning(self.first(inputs))
            both = self.second(maps)
            return self.frozen(both) + both + self.frozen(self.third(maps))

    body = Shared()
    assert not is_frozen_norm(body.learning)
    assert is_frozen_norm(body.frozen)
    assert traced(body) is not None
    fold_frozen_norms(body)
    assert not any(isinstance(one, FoldedConvolution | FoldedNorm) for one in body.modules())


def test_a_network_whose_maps_are_taken_by_hooks_stays_as_it_is():
    """Before the norms that follow them: with these folded, the maps would be those behind the norms."""
    torch.manual_seed(0)
    body = timm.create_model("xception41p", features_only=True, pretrained=False, out_indices=(3, 4)).eval()
    body = freeze_batch_norm_2d(body)
    with torch.no_grad():
        expected = [one.clone() for one in body(images())]
        fold_frozen_norms(body)
        found = body(images())
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_a_network_that_cannot_be_traced_stays_as_it_is():
    class Choosing(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution, self.norm = nn.Conv2d(3, 3, 1), freeze_batch_norm_2d(nn.BatchNorm2d(3))

        def forward(self, inputs):
            return self.norm(self.convolution(inputs)) if inputs.sum() > 0 else inputs

    body = Choosing()
    assert traced(body) is None
    fold_frozen_norms(body)
    assert type(body.convolution) is nn.Conv2d


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_product_of_pixels_is_the_convolution(bias, layout):
    torch.manual_seed(0)
    convolution = nn.Conv2d(7, 5, 1, bias=bias).double()
    assert is_matrix_product(convolution)
    features = torch.randn(2, 7, 3, 4, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
    own = convolution.bias if bias else None
    result = convolved(features, convolution.weight, own, convolution)
    torch.testing.assert_close(result, convolution(features))
    arguments = (features, convolution.weight, *([own] if bias else []))
    assert torch.autograd.gradcheck(
        lambda x, w, b=None: convolved(x, w, b, convolution), arguments, check_batched_grad=False
    )
    result.clamp_(0, 6).sum().backward()  # may be changed in place


@pytest.mark.parametrize(
    "other", [{"kernel_size": 3}, {"kernel_size": 1, "stride": 2}, {"kernel_size": 1, "padding": 1}]
)
def test_other_convolutions_are_no_products(other):
    convolution = nn.Conv2d(6, 6, **other)
    assert not is_matrix_product(convolution)
    assert not is_matrix_product(nn.Conv2d(6, 6, 1, groups=2))
    features = torch.randn(2, 6, 5, 4)
    result = convolved(features, convolution.weight, convolution.bias, convolution)
    torch.testing.assert_close(result, convolution(features))


def test_under_autocast_it_is_computed_in_half_precision():
    folded = network("resnet18")
    fold_frozen_norms(folded)
    with torch.autocast("cpu", torch.bfloat16):
        maps = folded(images())
    assert {one.dtype for one in maps} == {torch.bfloat16}
    torch.testing.assert_close(maps[1].float(), folded(images())[1], rtol=0.1, atol=0.3)
