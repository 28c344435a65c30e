"""DINO as a network: sizes, gradients, levels, what leaks, odd batches, and settings that cannot be."""

from dataclasses import replace

import pytest
import torch

from deformable_detr.core.errors import ConfigError
from deformable_detr.core.types import Target
from deformable_detr.models import DINO, MODELS, DeformableDETRConfig, DINOConfig, interface_of
from deformable_detr.models.losses import CriterionConfig

TINY = DINOConfig(
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
    denoising_queries=6,
)
TWO_STAGE = DeformableDETRConfig(
    **{name: getattr(TINY, name) for name in DeformableDETRConfig.__dataclass_fields__ if hasattr(TINY, name)}
    | {"variant": "two_stage", "denoising_queries": 0}
)


def make_batch(*sizes_hw):
    height, width = (max(size[axis] for size in sizes_hw) for axis in (0, 1))
    images = torch.zeros(len(sizes_hw), 3, height, width)
    mask = torch.ones(len(sizes_hw), height, width, dtype=torch.bool)
    for index, (h, w) in enumerate(sizes_hw):
        images[index, :, :h, :w] = torch.randn(3, h, w)
        mask[index, :h, :w] = False
    return images, mask


def make_targets(*counts, classes=3):
    return [Target(torch.randint(classes, (n,)), torch.rand(n, 4) * 0.4 + 0.1) for n in counts]


def awake(config):
    """In training, with box heads whose last layers do not hide what is before them."""
    model = MODELS.build(config).train()
    for name, parameter in model.named_parameters():
        if "box_head" in name and parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def losses_of(model, batch, targets):
    return model.make_criterion(CriterionConfig(class_weight=1.0))(model(*batch, targets), targets)


@pytest.mark.parametrize(
    ("settings", "trained", "total"),
    [({}, 46_670_782, 46_893_182), ({"num_queries": 30}, 46_448_062, 46_670_462)],
)
def test_published_parameter_counts(settings, trained, total):
    with torch.device("meta"):
        model = MODELS.build(DINOConfig(**settings), load_backbone_weights=False)
    counts = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    assert sum(count for count, learns in counts if learns) == trained
    assert sum(count for count, _ in counts) == total


def test_five_levels_have_the_published_shapes():
    with torch.device("meta"):
        model = MODELS.build(DINOConfig(num_levels=5), load_backbone_weights=False)
    state = model.state_dict()
    assert state["pyramid.projections.0.0.weight"].shape == (256, 256, 1, 1)
    assert state["pyramid.projections.4.0.weight"].shape == (256, 2048, 3, 3)
    assert state["encoder.layers.0.self_attention.sampling_offsets.weight"].shape == (320, 256)
    assert state["encoder.layers.0.self_attention.attention_weights.weight"].shape == (160, 256)
    assert model.pyramid.backbone.strides == [4, 8, 16, 32]


def test_it_has_all_that_is_asked_of_a_network():
    model = MODELS.build(TINY)
    interface = interface_of(model)
    assert (interface.num_classes, model.num_queries, MODELS.name_of(TINY)) == (3, 11, "dino")
    parts = [start for starts in interface.parts.values() for start in starts]
    assert all(name.startswith(tuple(parts)) for name, _ in model.named_parameters())
    assert isinstance(model, DINO)


@pytest.mark.parametrize("num_levels", [1, 3, 4, 5])
@pytest.mark.parametrize("heads", ["shared", "separate"])
def test_every_parameter_learns(num_levels, heads):
    model = awake(replace(TINY, num_levels=num_levels, heads=heads))
    losses = losses_of(model, make_batch((64, 96), (80, 50)), make_targets(2, 1))
    losses.total.backward()
    silent = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not silent
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    still = [name for name, parameter in model.named_parameters() if parameter.grad.abs().sum() == 0]
    assert not [name for name in still if "weight" in name and "backbone" not in name]


def test_there_are_three_terms_of_every_stage():
    model = awake(TINY)
    losses = losses_of(model, make_batch((64, 96)), make_targets(2))
    stages = ["decoder.0", "decoder.1", "denoising.0", "denoising.1", "proposals"]
    assert {name.split("/")[0] for name in losses.terms} == set(stages)
    assert len(losses.terms) == 15


@pytest.mark.parametrize("config", [TINY, replace(TWO_STAGE, denoising_queries=6)], ids=["dino", "two_stage"])
def test_nothing_leaks_from_denoising(config):
    """The other predictions are the same with noisy copies beside them, without, and with others."""
    model = awake(config)
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval()
    batch, targets = make_batch((64, 96), (80, 50)), make_targets(3, 1)
    with torch.no_grad():
        without, with_copies = model(*batch), model(*batch, targets)
        other = model(*batch, make_targets(2, 2))
    assert without.denoising is None
    assert with_copies.denoising.objects.shape == (2, 2 * 3 * 2)
    for one in (with_copies, other):
        for plain, beside in zip(without.layers, one.layers, strict=True):
            torch.testing.assert_close(beside.logits, plain.logits, atol=1e-5, rtol=0)
            torch.testing.assert_close(beside.boxes, plain.boxes, atol=1e-6, rtol=0)
        assert torch.equal(one.proposals.logits, without.proposals.logits)
    noisy = with_copies.denoising.layers[-1].logits
    assert not torch.allclose(noisy[:, :3], noisy[:, 6:9], atol=1e-4)  # the groups are not copies of each other


BRANCHES = [{"hybrid_queries": 30, "hybrid_repeats": 3}, {"query_groups": 3}]


@pytest.mark.parametrize("branches", BRANCHES, ids=["hybrid", "groups"])
@pytest.mark.parametrize("denoising_queries", [0, 6])
def test_queries_of_training_change_no_answer_and_learn(branches, denoising_queries):
    """The same weights with and without them, in training and in prediction; and every weight has a gradient."""
    torch.manual_seed(3)
    config = replace(TINY, denoising_queries=denoising_queries)
    model, plain = awake(replace(config, **branches)), awake(config)
    missing = plain.load_state_dict(
        {name: one for name, one in model.state_dict().items() if name in plain.state_dict()}
    )
    assert not missing.missing_keys
    more = model.state_dict().keys() - plain.state_dict().keys()
    assert more
    assert all(name.startswith(model.training_tensors) for name in more)
    batch, targets = make_batch((64, 96), (80, 50)), make_targets(2, 1)
    targets = [one._replace(noise_seed=seed) for seed, one in enumerate(targets)]
    output, expected = model(*batch, targets), plain(*batch, targets)
    pairs = [*zip(output.layers, expected.layers, strict=True), (output.proposals, expected.proposals)]
    if denoising_queries:
        pairs += zip(output.denoising.layers, expected.denoising.layers, strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one.logits, other.logits, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(one.boxes, other.boxes, rtol=1e-4, atol=1e-5)
    assert len(output.groups) == branches.get("query_groups", 1) - 1
    assert (output.one_to_many is not None) == ("hybrid_queries" in branches)
    losses = model.make_criterion(CriterionConfig())(output, targets)
    assert ("one_to_many/giou" in losses.terms) == ("hybrid_queries" in branches)
    losses.total.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    assert model.query_source.training_embedding.weight.grad.abs().sum() > 0
    with torch.no_grad():
        output, expected = model.eval()(*batch), plain.eval()(*batch)
    assert torch.equal(output.final.boxes, expected.final.boxes)
    assert (output.groups, output.one_to_many) == ((), None)


def test_heads_of_groups_are_known_as_such():
    model = MODELS.build(replace(TINY, query_groups=3))
    rows = [name for name, one in model.named_parameters() if name.startswith(model.class_rows.by_class)]
    assert sum("group_class_heads" in name for name in rows) == 2 * 2
    heads = [name for name, _ in model.named_parameters() if name.startswith(model.parts["heads"])]
    assert sum("group_box_heads" in name for name in heads) == 2 * 6
    source = model.query_source
    assert all(torch.equal(source.class_head.weight, one.weight) for one in source.group_class_heads)


def test_without_branches_the_initial_values_are_those_they_always_were():
    torch.manual_seed(3)
    plain = MODELS.build(TINY).state_dict()
    torch.manual_seed(3)
    again = MODELS.build(replace(TINY, hybrid_queries=5)).state_dict()
    assert again.keys() - plain.keys() == {"query_source.training_embedding.weight"}
    assert again["query_source.training_embedding.weight"].abs().sum() > 0


def test_evaluation_has_no_denoising():
    model = awake(TINY).eval()
    batch = make_batch((64, 96))
    with torch.no_grad():
        output = model(*batch, make_targets(2))
        assert output.denoising is None
        assert torch.equal(output.final.logits, model(*batch).final.logits)


@pytest.mark.parametrize("counts", [(0, 0), (0, 2), (9, 1)])
def test_batches_without_objects_and_crowded_ones(counts):
    """Nine objects are more than the six denoising queries, and than half of the eleven queries."""
    model = awake(TINY)
    losses = losses_of(model, make_batch((64, 96), (80, 50)), make_targets(*counts))
    losses.total.backward()
    assert losses.total.isfinite()
    assert all(parameter.grad is not None for parameter in model.parameters())
    if sum(counts) == 0:
        assert all(float(term) == 0 for name, term in losses.terms.items() if name.startswith("denoising"))


def test_one_class():
    model = awake(replace(TINY, num_classes=1))
    losses_of(model, make_batch((64, 96)), make_targets(2, classes=1)).total.backward()
    assert model.denoising.label_embed.weight.grad[0].abs().sum() > 0


@pytest.mark.parametrize("proposals", ["paper", "valid", "distinct"])
def test_fewer_positions_than_queries(proposals):
    model = awake(replace(TINY, num_queries=500, proposals=proposals))
    output = model(*make_batch((64, 96), (33, 40)))
    positions = 8 * 12 + 4 * 6 + 2 * 3 + 1 * 2
    assert output.final.logits.shape == (2, positions, 3)
    assert output.proposals.boxes.shape == (2, positions, 4)


def test_invalid_proposals_come_last():
    """In the padding all tokens are equal; where they score best, "paper" chooses them, and "valid" does not."""
    model = MODELS.build(replace(TINY, num_queries=20, denoising_queries=0)).eval()
    source, batch = model.query_source, make_batch((128, 160), (104, 96))
    with torch.no_grad():
        source.class_head.weight[0] = source.memory_norm(source.memory_proj.bias)
        source.class_head.bias[0] = 0.0
        valid = model(*batch).proposals.boxes
        source.choice = "paper"
        paper = model(*batch).proposals.boxes
    everything = torch.ones(4)
    assert not (valid == everything).all(-1).any()
    assert (paper[1] == everything).all()


def test_content_goes_by_rank():
    """Mixed queries: the first proposal gets the first row of the table in every image."""
    model = awake(TINY).eval()
    kept = []
    model.decoder.register_forward_hook(lambda _, inputs, output: kept.append(inputs[0]))
    with torch.no_grad():
        output = model(*make_batch((64, 96), (80, 50)))
    best = output.proposals.logits.amax(-1)
    assert (best.diff(dim=1) <= 0).all()
    assert torch.equal(kept[0].content[1], model.query_source.content.weight)
    assert torch.equal(kept[0].reference, output.proposals.boxes)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_queries": 0}, "num_queries is 0; it must be at least 1"),
        ({"denoising_queries": -1}, "denoising_queries is -1; it must be at least 0"),
        ({"box_noise": -0.1}, r"box_noise is -0.1; it must be in 0\.\.10"),
        ({"label_noise": 2.5}, r"label_noise is 2.5; it must be in 0\.\.2"),
        ({"denoising_queries": 0, "box_noise": 0.4}, "box_noise=0.4 has no meaning without denoising; set"),
        ({"hybrid_queries": 5, "query_groups": 2}, "set hybrid_queries=0 or query_groups=1"),
        ({"hybrid_repeats": 3}, "hybrid_repeats=3 has no meaning without hybrid queries"),
        ({"query_groups": 23}, "training has 20700 queries; it can have at most 20000"),
        ({"position_temperature": 0.0}, "position_temperature is 0.0; it must be above 0"),
        ({"position_offset": 0.5}, "position_offset is 0.5; it must be in -1..0"),
        ({"head_eps": 0.5}, "head_eps is 0.5; it must be above 0 and below 0.5"),
        ({"hidden_dim": 100}, "hidden_dim is 100; it must be a multiple of 32"),
        ({"backbone_weights": "none"}, "frozen_stages is 2, but backbone_weights is 'none'"),
        ({"backbone": "hf-hub:a/b"}, "backbone is 'hf-hub:a/b'; it must be a name that timm itself knows"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ConfigError, match=message):
        DINOConfig(**settings)


@pytest.mark.parametrize("variant", ["base", "refine"])
def test_denoising_needs_queries_that_are_boxes(variant):
    with pytest.raises(ConfigError, match=f"denoising_queries=100 has no meaning for variant '{variant}'.*two_stage"):
        DeformableDETRConfig(variant=variant, denoising_queries=100)


def test_without_denoising_the_two_stage_model_is_as_it_was():
    torch.manual_seed(3)
    plain = MODELS.build(TWO_STAGE).state_dict()
    torch.manual_seed(3)
    more = MODELS.build(replace(TWO_STAGE, denoising_queries=5)).state_dict()
    assert more.keys() - plain.keys() == {"denoising.label_embed.weight"}
    assert all(torch.equal(more[name], tensor) for name, tensor in plain.items())


def test_half_precision():
    """Boxes and scores are in float32 all the same, and so is the loss."""
    model, batch, targets = awake(TINY), make_batch((64, 96), (80, 50)), make_targets(2, 1)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(*batch, targets)
    for layer in (*output.layers, *output.denoising.layers, output.proposals):
        assert layer.logits.dtype == layer.boxes.dtype == torch.float32
    losses = model.make_criterion(CriterionConfig())(output, targets)
    losses.total.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
