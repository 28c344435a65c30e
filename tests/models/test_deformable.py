"""The built model: sizes, variants, gradients, padding, and what cannot be built."""

from dataclasses import replace

import pytest
import torch

from deformable_detr.core.errors import ConfigError
from deformable_detr.core.types import Target
from deformable_detr.models import MODELS, DeformableDETRConfig, build
from deformable_detr.models.losses import Criterion, CriterionConfig

TINY = DeformableDETRConfig(
    num_classes=3,
    backbone="resnet10t",
    backbone_weights="none",
    frozen_stages=0,
    frozen_batch_norm=False,
    hidden_dim=32,
    num_heads=4,
    encoder_layers=1,
    decoder_layers=2,
    encoder_points=2,
    decoder_points=3,
    ffn_dim=48,
    num_queries=11,
    dropout=0.0,
)


def make_batch(*sizes_hw):
    height, width = (max(size[axis] for size in sizes_hw) for axis in (0, 1))
    images = torch.zeros(len(sizes_hw), 3, height, width)
    mask = torch.ones(len(sizes_hw), height, width, dtype=torch.bool)
    for index, (h, w) in enumerate(sizes_hw):
        images[index, :, :h, :w] = torch.randn(3, h, w)
        mask[index, :h, :w] = False
    return images, mask


def make_targets(*counts):
    return [Target(torch.randint(3, (n,)), torch.rand(n, 4) * 0.4 + 0.1) for n in counts]


@pytest.mark.parametrize(
    ("settings", "trained", "total"),
    [
        ({"variant": "base"}, 39_847_265, 40_069_665),
        ({"variant": "refine"}, 40_627_260, 40_849_660),
        ({"variant": "two_stage"}, 40_959_129, 41_181_529),
        ({"num_levels": 1}, 33_844_193, 34_066_593),
        ({"num_levels": 1, "dilation": True}, 33_844_193, 34_066_593),
    ],
)
def test_published_parameter_counts(settings, trained, total):
    model = build(DeformableDETRConfig(**settings), load_backbone_weights=False)
    counts = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    assert sum(count for count, learns in counts if learns) == trained
    assert sum(count for count, _ in counts) == total


@pytest.mark.parametrize("num_levels", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("variant", ["base", "refine", "two_stage"])
def test_every_parameter_learns(variant, num_levels):
    model = build(replace(TINY, variant=variant, num_levels=num_levels)).train()
    # The box heads end in zeros at first, which would hide everything before them.
    for name, parameter in model.named_parameters():
        if "box_head" in name and parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.1)
    images, mask = make_batch((64, 96), (80, 50))
    output = model(images, mask)
    queries = output.final.boxes.shape[1]
    assert output.final.logits.shape == (2, queries, 3)
    assert queries <= 11
    assert (output.proposals is not None) == (variant == "two_stage")
    Criterion(CriterionConfig())(output, make_targets(2, 1)).total.backward()
    silent = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not silent
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


BRANCHES = [{"hybrid_queries": 30, "hybrid_repeats": 3}, {"query_groups": 3}]


@pytest.mark.parametrize("branches", BRANCHES, ids=["hybrid", "groups"])
@pytest.mark.parametrize("variant", ["base", "refine", "two_stage"])
def test_queries_of_training_change_no_answer_and_learn(variant, branches):
    """The same weights with and without them, in training and in prediction; and every weight has a gradient."""
    torch.manual_seed(3)
    plain = build(replace(TINY, variant=variant))
    model = build(replace(TINY, variant=variant, **branches))
    missing = model.load_state_dict(plain.state_dict(), strict=False)
    assert not missing.unexpected_keys
    assert {name.split(".")[1] for name in missing.missing_keys} <= {
        *("training_embedding", "group_projs", "group_norms", "group_class_heads", "group_box_heads")
    }
    for name, parameter in model.named_parameters():
        if "box_head" in name and parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.1)
    plain.load_state_dict({name: one for name, one in model.state_dict().items() if name in plain.state_dict()})
    images, mask = make_batch((64, 96), (80, 50))
    targets = make_targets(2, 1)
    # Batch norm has the statistics of the batch in training, and learns from it: both models see the same.
    output, expected = model.train()(images, mask), plain.train()(images, mask)
    for one, other in zip(output.layers, expected.layers, strict=True):
        torch.testing.assert_close(one.logits, other.logits, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(one.boxes, other.boxes, rtol=1e-4, atol=1e-5)
    assert len(output.groups) == branches.get("query_groups", 1) - 1
    assert (output.one_to_many is not None) == ("hybrid_queries" in branches)
    Criterion(CriterionConfig())(output, targets).total.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    with torch.no_grad():
        output, expected = model.eval()(images, mask), plain.eval()(images, mask)
    assert torch.equal(output.final.boxes, expected.final.boxes)
    assert (output.groups, output.one_to_many) == ((), None)


@pytest.mark.parametrize("branches", BRANCHES, ids=["hybrid", "groups"])
def test_denoising_beside_branches(branches):
    """No matching query of any branch sees a noisy copy, and copies see the answering queries alone."""
    torch.manual_seed(5)
    model = build(replace(TINY, variant="two_stage", denoising_queries=6, **branches)).train()
    plain = build(replace(TINY, variant="two_stage", denoising_queries=6)).train()
    for name, parameter in model.named_parameters():
        if "box_head" in name and parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.1)
    plain.load_state_dict({name: one for name, one in model.state_dict().items() if name in plain.state_dict()})
    images, mask = make_batch((64, 96), (80, 50))
    targets = [one._replace(noise_seed=seed) for seed, one in enumerate(make_targets(2, 1))]
    output, without, alone = model(images, mask, targets), model(images, mask), plain(images, mask, targets)
    assert without.denoising is None

    def branches_of(one):
        more = [group.layers for group in one.groups] + ([one.one_to_many.layers] if one.one_to_many else [])
        return [layer for layers in [one.layers, *more] for layer in layers]

    pairs = [*zip(branches_of(output), branches_of(without), strict=True)]
    assert len(pairs) == 2 * (branches.get("query_groups", 2))
    pairs += zip(output.denoising.layers, alone.denoising.layers, strict=True)
    assert output.denoising.layers[0].logits.shape == (2, 2 * 2 * 3, 3)
    for one, other in pairs:
        torch.testing.assert_close(one.logits, other.logits, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(one.boxes, other.boxes, rtol=1e-4, atol=1e-5)
    losses = Criterion(CriterionConfig())(output, targets)
    assert {"denoising.1/giou", "decoder.1/giou", "proposals/l1"} <= losses.terms.keys()
    losses.total.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_class_heads_of_groups_are_known_as_such():
    model = build(replace(TINY, variant="two_stage", query_groups=3))
    rows = [name for name, one in model.named_parameters() if name.startswith(model.class_rows.by_channel)]
    assert len(rows) == 2 * 3
    heads = [name for name, _ in model.named_parameters() if name.startswith(model.parts["heads"])]
    assert sum("group_box_heads" in name for name in heads) == 2 * 6
    assert all(
        torch.equal(model.query_source.class_head.bias, one.bias) for one in model.query_source.group_class_heads
    )


@pytest.mark.parametrize("variant", ["base", "two_stage"])
def test_steps_lower_the_loss(variant):
    model = build(replace(TINY, variant=variant)).train()
    criterion = Criterion(CriterionConfig())
    images, mask = make_batch((64, 96), (80, 50))
    targets = make_targets(2, 0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    totals = []
    for _ in range(12):
        losses = criterion(model(images, mask), targets)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        totals.append(losses.total.item())
    assert totals[-1] < 0.8 * totals[0]


@torch.no_grad()
@pytest.mark.parametrize("variant", ["base", "refine", "two_stage"])
def test_per_image_a_padded_batch_gives_each_images_own_result(variant):
    extra = {"proposals": "valid"} if variant == "two_stage" else {}
    model = build(replace(TINY, variant=variant, features="per_image", **extra)).eval()
    for parameter in model.decoder.box_heads.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    sizes = [(97, 130), (120, 75)]
    images, mask = make_batch(*sizes)
    together = model(images, mask)
    for index, (height, width) in enumerate(sizes):
        alone = model(images[index : index + 1, :, :height, :width], mask[index : index + 1, :height, :width])
        torch.testing.assert_close(together.final.logits[index], alone.final.logits[0], rtol=0, atol=1e-4)
        torch.testing.assert_close(together.final.boxes[index], alone.final.boxes[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_queries": 0}, "num_queries is 0"),
        ({"encoder_layers": -1}, "encoder_layers is -1"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"hidden_dim": 100}, "multiple of 32"),
        ({"num_heads": 5}, "hidden_dim 32 cannot be split over num_heads 5"),
        ({"proposals": "valid"}, "has no meaning for variant 'base'"),
        (
            {"proposals": "distinct", "variant": "refine"},
            "'distinct' has no meaning for variant 'refine'.*proposals=paper",
        ),
        ({"backbone": ""}, "cannot be empty"),
        ({"frozen_stages": 1}, "cannot stay frozen; set frozen_stages=0"),
        ({"frozen_batch_norm": True}, "set frozen_batch_norm=false"),
        ({"num_queries": 20_001}, "num_queries is 20001; it can be at most 20000"),
        ({"hidden_dim": 4096}, "hidden_dim is 4096; it can be at most 2048"),
        ({"ffn_dim": 10**5000}, "ffn_dim is a number with thousands of digits; it can be at most 16384"),
        ({"encoder_layers": 49}, "encoder_layers is 49; it can be at most 48"),
        ({"decoder_layers": 10**9}, "decoder_layers is 1000000000; it can be at most 48"),
        ({"encoder_points": 33}, "encoder_points is 33; it can be at most 32"),
        ({"num_levels": 9}, "num_levels is 9; it can be at most 8"),
        ({"num_heads": 65}, "num_heads is 65; it can be at most 64"),
        ({"num_classes": 100_001}, "num_classes is 100001; it can be at most 100000"),
        ({"dropout": float("nan")}, "dropout is nan"),
        ({"hybrid_queries": 5, "query_groups": 2}, "set hybrid_queries=0 or query_groups=1"),
        ({"hybrid_queries": 5, "hybrid_repeats": 1}, "hybrid_repeats is 1; it must be at least 2"),
        ({"hybrid_repeats": 0}, "hybrid_repeats is 0; it must be at least 2"),
        ({"hybrid_repeats": 3}, "hybrid_repeats=3 has no meaning without hybrid queries"),
        ({"query_groups": 51}, "query_groups is 51; it can be at most 50"),
        ({"query_groups": 50, "num_queries": 401}, "training has 20050 queries; it can have at most 20000"),
        ({"backbone": "hf-hub:timm/resnet50"}, "a name that timm itself knows"),
        ({"backbone_weights": "a\nb"}, "backbone_weights is .*, which cannot be the name of a file"),
    ],
)
def test_what_cannot_be_built_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        replace(TINY, **settings)


def test_the_registry_builds():
    assert MODELS["deformable_detr"].config_class is DeformableDETRConfig
    assert MODELS.name_of(TINY) == "deformable_detr"
    assert MODELS.build(TINY).decoder.refine is False


@pytest.mark.compile
@pytest.mark.parametrize("variant", ["base", pytest.param("two_stage", marks=pytest.mark.slow)])
def test_compiles_without_a_graph_break_and_exports(variant):
    model = build(replace(TINY, variant=variant)).eval()
    images, mask = make_batch((64, 96), (80, 50))
    expected = model(images, mask).final
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images, mask).final.boxes, expected.boxes, rtol=1e-4, atol=1e-5)
    exported = torch.export.export(model, (images, mask)).module()
    torch.testing.assert_close(exported(images, mask).final.boxes, expected.boxes, rtol=1e-4, atol=1e-5)
