"""The built DETR: sizes, gradients, padding, images without objects, and what cannot be built."""

from dataclasses import replace

import pytest
import torch

from deformable_detr.core.errors import ConfigError
from deformable_detr.models import DETR, MODELS, DetectionModel, DETRConfig, ModelConfig, build_detr
from deformable_detr.models.losses import CriterionConfig
from tests.models.test_deformable import make_batch, make_targets

TINY = DETRConfig(
    num_classes=3,
    backbone="resnet10t",
    backbone_weights="none",
    frozen_stages=0,
    frozen_batch_norm=False,
    hidden_dim=36,
    num_heads=3,
    encoder_layers=2,
    decoder_layers=3,
    ffn_dim=48,
    num_queries=11,
    dropout=0.0,
)


@pytest.mark.parametrize(
    ("settings", "trained", "total", "names"),
    [
        ({}, 41_302_368, 41_524_768, 458),
        ({"dilation": True}, 41_302_368, 41_524_768, 458),
        (
            {
                "backbone": "resnet18.tv_in1k",
                "hidden_dim": 128,
                "encoder_layers": 3,
                "decoder_layers": 4,
                "pre_norm": True,
                "ffn_dim": 512,
                "num_queries": 40,
                "num_classes": 20,
            },
            12_770_713,
            12_927_577,
            223,
        ),
    ],
)
def test_published_parameter_counts(settings, trained, total, names):
    with torch.device("meta"):
        model = build_detr(DETRConfig(**settings), load_backbone_weights=False)
    counts = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    assert sum(count for count, learns in counts if learns) == trained
    assert sum(count for count, _ in counts) == total
    assert len(model.state_dict()) == names


@pytest.mark.parametrize("change", [{}, {"pre_norm": True, "position": "learned"}, {"dilation": True}])
def test_a_batch_of_two_sizes_goes_through_and_learns(change):
    model = build_detr(replace(TINY, **change))
    with torch.no_grad():
        # At first the content of the queries is 0, and so are timm's last norms of each block and all biases.
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    images, mask = make_batch((64, 110), (97, 50))
    output = model(images, mask)
    assert output.proposals is None
    assert len(output.layers) == 3
    assert output.final.logits.shape == (2, 11, 4)
    assert output.final.boxes.shape == (2, 11, 4)
    assert 0 <= output.final.boxes.min() <= output.final.boxes.max() <= 1
    criterion = model.make_criterion(CriterionConfig())
    criterion(output, make_targets(2, 0)).total.backward()
    # The first norm in front of everything sees content that is 0.
    idle = ["decoder.layers.0.norm_self.weight"] if model.decoder.layers[0].pre_norm else []
    assert [name for name, one in model.named_parameters() if one.grad is None or not one.grad.any()] == idle


def test_a_batch_without_any_object_teaches_that_there_is_nothing():
    model = build_detr(TINY)
    images, mask = make_batch((64, 90), (64, 96))
    criterion = model.make_criterion(CriterionConfig())
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    losses = []
    for _ in range(8):
        found = criterion(model(images, mask), make_targets(0, 0))
        optimizer.zero_grad()
        found.total.backward()
        assert all(one.grad is None or one.grad.isfinite().all() for one in model.parameters())
        optimizer.step()
        losses.append(found.total.item())
        assert all(term == 0 for name, term in found.terms.items() if not name.endswith("class"))
    assert losses[-1] < losses[0]
    assert model.eval()(images, mask).final.logits[..., -1].softmax(-1).isfinite().all()


def test_padding_is_not_looked_at():
    model = build_detr(replace(TINY, frozen_batch_norm=True, backbone_weights="hub"), load_backbone_weights=False)
    model.eval()
    images, mask = make_batch((64, 96), (64, 96))
    # More padding at the right and below, in steps of whole tokens: the same but for the rim of the convolutions.
    larger, more = torch.zeros(2, 3, 128, 160), torch.ones(2, 128, 160, dtype=torch.bool)
    larger[:, :, :64, :96], more[:, :64, :96] = images, False
    with torch.no_grad():
        memory, wider = model.features(images, mask), model.features(larger, more)
        kept = ~wider.padding_mask[0].view(4, 5)
        assert int(kept.sum()) == memory.tokens.shape[1]
        wider = wider._replace(tokens=wider.tokens.masked_fill(wider.padding_mask[..., None], 1e3))
        wider.tokens[:, kept.flatten()] = memory.tokens
        one = model.decoder(model.queries.weight, model.encoder(memory))[-1]
        other = model.decoder(model.queries.weight, model.encoder(wider))[-1]
    torch.testing.assert_close(one.logits, other.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(one.boxes, other.boxes, rtol=1e-4, atol=1e-4)


def test_auxiliary_losses_do_not_change_the_answer():
    model = build_detr(TINY).eval()
    without = build_detr(replace(TINY, auxiliary_losses=False)).eval()
    without.load_state_dict(model.state_dict())
    images, mask = make_batch((64, 110), (97, 50))
    with torch.no_grad():
        one, other = model(images, mask), without(images, mask)
    assert (len(one.layers), len(other.layers)) == (3, 1)
    assert torch.equal(one.final.logits, other.final.logits)
    assert torch.equal(one.final.boxes, other.final.boxes)
    terms = without.make_criterion(CriterionConfig())(other, make_targets(1, 2)).terms
    assert terms.keys() == {"decoder.0/class", "decoder.0/l1", "decoder.0/giou"}


def test_it_has_all_that_the_package_asks_of_a_network():
    model = build_detr(TINY)
    assert isinstance(model, DetectionModel)
    assert isinstance(TINY, ModelConfig)
    assert (model.num_classes, model.num_queries) == (3, 11)
    names = [name for name, _ in model.named_parameters()]
    starts = [start for part in model.parts.values() for start in part]
    assert all(any(name.startswith(start) for start in starts) for name in names)
    assert len(model.layers()) == 5
    by_class = [name for name in names if name.startswith(model.class_rows.by_class)]
    assert [len(model.get_parameter(name)) for name in by_class] == [4, 4]
    assert MODELS["detr"].model_class is DETR
    assert MODELS.name_of(TINY) == "detr"
    assert MODELS.class_scores(TINY) == "softmax"
    other = {"dropout": 0.3, "frozen_stages": 0, "auxiliary_losses": False}
    assert TINY.free_settings == other.keys()
    changed = build_detr(replace(TINY, **other)).state_dict()
    assert {name: one.shape for name, one in changed.items()} == {n: t.shape for n, t in model.state_dict().items()}


def test_what_it_says_of_itself():
    config = DETRConfig(dilation=True, backbone_weights="some/folder/r50.pth")
    assert config.describe() == "DETR-DC5, backbone resnet50.tv_in1k (weights: some/folder/r50.pth)"
    assert config.portable().backbone_weights == "r50.pth"
    assert config.with_classes(7).num_classes == 7
    assert (config.downloads, DETRConfig().downloads) == ("", "weights of resnet50.tv_in1k")
    assert (TINY.pretrained_parts, config.pretrained_parts) == ((), ("backbone",))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_queries": 0}, "num_queries is 0"),
        ({"decoder_layers": 0}, "decoder_layers is 0; it must be at least 1"),
        ({"hidden_dim": 42}, "hidden_dim is 42; it must be a multiple of 4"),
        ({"num_heads": 5}, "hidden_dim 36 cannot be split over num_heads 5"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"frozen_stages": 1}, "cannot stay frozen; set frozen_stages=0"),
        ({"hidden_dim": 4096}, "hidden_dim is 4096; it can be at most 2048"),
    ],
)
def test_what_cannot_be_built_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        replace(TINY, **settings)


@pytest.mark.compile
def test_compiles_without_a_graph_break_and_exports():
    model = build_detr(TINY).eval()
    images, mask = make_batch((64, 96), (80, 50))
    expected = model(images, mask).final
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images, mask).final.boxes, expected.boxes, rtol=1e-4, atol=1e-5)
    exported = torch.export.export(model, (images, mask)).module()
    torch.testing.assert_close(exported(images, mask).final.boxes, expected.boxes, rtol=1e-4, atol=1e-5)
