import json
from dataclasses import replace

import pytest
import torch

from deformable_detr.core.errors import CheckpointError, ConfigError
from deformable_detr.data.preprocessing import Preprocessing
from deformable_detr.models import MODELS, build
from deformable_detr.models.layers.initialisation import PRIOR_PROBABILITY
from deformable_detr.runs.recipes import finetune, small, with_augmentation, with_image_size
from deformable_detr.training.finetune import Source, changed, fill, match_classes, plan, read_source, start_from
from deformable_detr.weights.checkpoint import Checkpoint, save
from deformable_detr.weights.coco_classes import COCO_CLASSES, UNUSED
from tests.family import FAMILY

COCO_80 = tuple(name for name in COCO_CLASSES if not name.startswith(UNUSED))


@pytest.fixture
def source_of(tiny_config):
    """source_of(classes, **changes to the model) -> weights in which no two numbers of a tensor are alike."""

    def make(classes, **changes):
        config = replace(tiny_config.model, num_classes=len(classes), **changes)
        torch.manual_seed(5)
        weights = {
            name: torch.randn(tensor.shape) if tensor.is_floating_point() else tensor + 7
            for name, tensor in build(config).state_dict().items()
        }
        checkpoint = Checkpoint(
            weights=weights,
            model=config,
            classes=tuple(classes),
            category_ids=tuple(range(len(classes))),
            preprocessing=Preprocessing(short_side=120, max_side=200, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)),
            provenance={"recipe": "tiny", "data": "scenes", "epoch": "3"},
            licence="MIT",
        )
        return Source("best.safetensors", checkpoint)

    return make


def filled(source, classes, seed=1):
    """A network for these classes, before and after."""
    torch.manual_seed(seed)
    model = build(replace(source.checkpoint.model, num_classes=len(classes)))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fill(model, plan(source, classes))
    return before, model.state_dict()


@pytest.mark.parametrize(
    ("wanted", "known", "rows"),
    [
        (["a", "b"], ["b", "x", "a"], (2, 0)),
        (["Hot_Dog", "teddybear", "tv"], ["hot dog", "teddy-bear", "tv monitor"], (0, 1, None)),
        (["stop  sign", " cat "], ["Stop-Sign", "CAT"], (0, 1)),
        (["cat", "Cat"], ["Cat", "cat"], (1, 0)),  # exact first
        (["Cat", "cat"], ["cat"], (None, 0)),
        (["Cat", "CAT"], ["cat"], (None, None)),  # could be either, so neither
        (["cat"], ["CAT", "Cat"], (None,)),
        (["N/A", "dog"], ["N/A", "N/A", "dog"], (None, 2)),
        (["level 11", "level-1-2"], ["level-1-1", "level 1_2"], (None, 1)),
        (["5", "-5"], ["-5", "+5"], (None, 0)),
        (["class 1"], ["class1"], (0,)),
        (["Straße"], ["STRASSE"], (0,)),
        ([], ["cat"], ()),
        (["cat"], [], (None,)),
    ],
)
def test_names_that_are_the_same(wanted, known, rows):
    assert match_classes(wanted, known) == rows


def test_cocos_ids_with_holes_and_without_in_both_directions():
    down = match_classes(COCO_80, COCO_CLASSES)
    assert [COCO_CLASSES[row] for row in down] == list(COCO_80)
    assert down[:3] == (1, 2, 3)
    assert down[-1] == 90
    up = match_classes(COCO_CLASSES, COCO_80)
    assert sum(row is None for row in up) == 11
    assert all(row is None or COCO_80[row] == name for name, row in zip(COCO_CLASSES, up, strict=True))
    holes = match_classes(COCO_CLASSES, COCO_CLASSES)
    assert [name for name, row in zip(COCO_CLASSES, holes, strict=True) if row is None] == [
        name for name in COCO_CLASSES if name.startswith(UNUSED)
    ]


def test_a_user_may_call_a_class_unused():
    assert match_classes(["unused-lot"], ["unused-lot"]) == (0,)


@pytest.mark.parametrize("variant", ["base", "refine", "two_stage"])
def test_classes_that_go_on_keep_their_rows_in_every_layer_and_others_start_fresh(source_of, variant):
    source = source_of(["disc", "square", "star", "ring"], variant=variant)
    before, after = filled(source, ["cube", "star", "Disc"])
    heads = [name for name in after if name.startswith("decoder.class_heads.")]
    assert len(heads) == (2 if variant == "base" else 4)  # weight and bias, of one head or one for each layer
    weights = source.checkpoint.weights
    for name in heads:
        assert torch.equal(after[name][0], before[name][0])
        assert torch.equal(after[name][1], weights[name][2])
        assert torch.equal(after[name][2], weights[name][0])
        if name.endswith("bias"):
            assert torch.sigmoid(after[name][0]).item() == pytest.approx(PRIOR_PROBABILITY)
    for name, tensor in after.items():
        if "class_head" not in name:
            assert torch.equal(tensor, weights[name]), name


@pytest.mark.parametrize("classes", [["star"], ["a", "star", "disc", "b", "ring"]])
def test_the_proposals_keep_their_channels_where_they_are(source_of, classes):
    source = source_of(["disc", "square", "star"])
    before, after = filled(source, classes)
    shared = min(3, len(classes))
    for name in ("query_source.class_head.weight", "query_source.class_head.bias"):
        assert torch.equal(after[name][:shared], source.checkpoint.weights[name][:shared])
        assert torch.equal(after[name][shared:], before[name][shared:])


def test_from_91_to_80_and_back_every_row_returns(source_of):
    start = source_of(COCO_CLASSES)
    _, between = filled(start, COCO_80)
    config = replace(start.checkpoint.model, num_classes=80)
    middle = Source(
        "80", replace(start.checkpoint, weights=between, model=config, classes=COCO_80, category_ids=tuple(range(80)))
    )
    _, after = filled(middle, COCO_CLASSES)
    real = [index for index, name in enumerate(COCO_CLASSES) if not name.startswith(UNUSED)]
    for layer in range(2):
        name = f"decoder.class_heads.{layer}.weight"
        assert torch.equal(after[name][real], start.checkpoint.weights[name][real])
        assert torch.equal(between[name], start.checkpoint.weights[name][real])
    # The rule of published converters: 91 channels of proposals become the first 80, not the 80 that have names.
    name = "query_source.class_head.weight"
    assert torch.equal(between[name], start.checkpoint.weights[name][:80])


def test_the_same_classes_give_the_same_network(source_of):
    source = source_of(["disc", "square"])
    _, after = filled(source, ["disc", "square"])
    assert all(torch.equal(tensor, source.checkpoint.weights[name]) for name, tensor in after.items())


def test_the_row_of_no_object_goes_on_whatever_the_classes_are():
    config = replace(FAMILY["detr"], num_classes=3)
    checkpoint = Checkpoint(
        weights=MODELS.build(config).state_dict(),
        model=config,
        classes=("disc", "square", "star"),
        category_ids=(1, 2, 3),
        preprocessing=Preprocessing(),
    )
    source = Source("best.safetensors", checkpoint)
    for classes in (["star"], ["cube", "star", "disc", "ring", "square"]):
        model = MODELS.build(config.with_classes(len(classes)))
        fresh = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        fill(model, plan(source, classes))
        after = model.state_dict()
        for name in ("decoder.class_head.weight", "decoder.class_head.bias"):
            old = checkpoint.weights[name]
            assert torch.equal(after[name][-1], old[3])
            assert torch.equal(after[name][classes.index("star")], old[2])
            if "cube" in classes:
                assert torch.equal(after[name][0], fresh[name][0])
    wrong = dict(checkpoint.weights) | {"decoder.class_head.bias": torch.zeros(3)}
    with pytest.raises(CheckpointError, match=r"class_head\.bias has 3 rows for 3 classes and not 4"):
        fill(model, plan(source._replace(checkpoint=replace(checkpoint, weights=wrong)), classes))


def test_half_precision_is_taken(source_of):
    source = source_of(["disc", "square"])
    half = {
        name: tensor.half() if tensor.is_floating_point() else tensor
        for name, tensor in source.checkpoint.weights.items()
    }
    _, after = filled(source._replace(checkpoint=replace(source.checkpoint, weights=half)), ["square", "cube"])
    name = "decoder.class_heads.1.weight"
    assert after[name].dtype == torch.float32
    assert torch.equal(after[name][0], half[name][1].float())


def test_what_is_missing_or_misshapen_is_named(source_of):
    source = source_of(["disc", "square"])

    def refused(weights):
        with pytest.raises(CheckpointError) as error:
            filled(source._replace(checkpoint=replace(source.checkpoint, weights=weights)), ["disc", "cube"])
        return str(error.value)

    weights = source.checkpoint.weights
    without = {name: tensor for name, tensor in weights.items() if name != "pyramid.level_embed"}
    assert "best.safetensors does not fit the model: 1 missing: pyramid.level_embed" in refused(without)
    assert "1 unexpected: extra" in refused(weights | {"extra": torch.zeros(1)})
    wide = weights | {"encoder.layers.0.norm_ffn.weight": torch.zeros(33)}
    assert "encoder.layers.0.norm_ffn.weight is [33] there and [32] here" in refused(wide)
    rows = weights | {"decoder.class_heads.1.bias": torch.zeros(7)}
    assert "decoder.class_heads.1.bias has 7 rows for 2 classes" in refused(rows)
    narrow = weights | {"decoder.class_heads.0.weight": torch.zeros(2, 5)}
    assert "decoder.class_heads.0.weight is [2, 5] there and [2, 32] here" in refused(narrow)
    gone = {name: tensor for name, tensor in weights.items() if not name.startswith("decoder.class_heads.1")}
    assert "2 missing: decoder.class_heads.1" in refused(gone)


def test_people_are_told_what_came_from_where(source_of):
    transfer = plan(source_of(["disc", "square", "star"]), ["Disc", "star", "cube"])
    total = len(transfer.source.checkpoint.weights)
    assert transfer.describe() == (
        f"weights: {total - 6} of {total} tensors of best.safetensors (tiny, scenes) as they are; 4 of the class heads "
        "by class: 2 kept (Disc <- disc, star), 1 fresh (cube), 1 not needed (square); 2 of the proposals' class head "
        "by channel, channel 0 asking for any object; licence MIT"
    )
    record = json.loads(json.dumps(transfer.record()))
    assert record["classes"] == {"Disc": "disc", "star": "star", "cube": None}
    assert (record["classes_not_needed"], record["licence"], record["tensors"]) == (["square"], "MIT", total)
    assert record["tensors_by_channel"] == ["query_source.class_head.weight", "query_source.class_head.bias"]


def test_long_lists_are_cut_and_nothing_in_common_is_said(source_of):
    transfer = plan(source_of(COCO_CLASSES), ["gear"])
    assert "none kept, 1 fresh (gear), 80 not needed (person, " in transfer.describe()
    assert " and 72 more)" in transfer.describe()
    assert len(transfer.record()["classes_not_needed"]) == 80


def test_a_chain_of_weights_is_told_without_a_path(source_of, tmp_path):
    source = source_of(["disc"])
    earlier = replace(source.checkpoint, provenance={**source.checkpoint.provenance, "weights": "r50.pth"})
    save(earlier, tmp_path / "best.safetensors")
    found = read_source(tmp_path / "best.safetensors")
    assert plan(found, ["disc"]).origin == ("best.safetensors (tiny, scenes, from r50.pth)", "MIT")
    assert read_source(found) is found
    with pytest.raises(CheckpointError, match=r"nope\.safetensors"):
        read_source(tmp_path / "nope.safetensors")


def test_finetune_takes_structure_normalisation_and_image_size_of_the_weights(source_of):
    checkpoint = source_of(["disc"]).checkpoint
    config = start_from(finetune(), source_of(["disc"]))
    assert config.model == checkpoint.model
    assert config.preprocessing == checkpoint.preprocessing
    assert max(with_augmentation(config, "paper").augmentation.short_sides) == 120
    assert config.run.start == "weights"
    assert start_from(config, source_of(["disc"])) == config
    config = start_from(with_image_size(finetune(), 64), source_of(["disc"]))
    assert config.preprocessing.short_side == 64
    assert config.preprocessing.mean == (0.1, 0.2, 0.3)


def test_another_recipe_keeps_its_schedule_and_its_image_size(source_of):
    config = start_from(small(), source_of(["disc"]))
    assert config.model == source_of(["disc"]).checkpoint.model
    assert (config.preprocessing, config.run.start) == ("auto", "weights")
    config = start_from(with_image_size(small(), 96), source_of(["disc"]))
    assert (config.preprocessing.short_side, config.preprocessing.std) == (96, (0.4, 0.5, 0.6))
    assert (config.optimizer, config.augmentation) == (small().optimizer, small().augmentation)


def test_without_weights_nothing_may_need_them(tiny_config):
    with pytest.raises(ConfigError, match="finetune starts from the weights of a whole detector; name them with"):
        start_from(finetune(), None)
    with pytest.raises(ConfigError, match="freeze holds encoder, which would keep random weights"):
        start_from(small().with_settings(freeze=("backbone", "encoder")), None)
    with pytest.raises(ConfigError, match="freeze holds backbone, which would keep random weights"):
        start_from(tiny_config.with_settings(freeze=("backbone",)), None)
    assert start_from(small().with_settings(freeze=("backbone",)), None).run.freeze == ("backbone",)


def test_settings_that_weights_leave_free_can_be_changed_and_structure_cannot(source_of):
    source = source_of(["disc"])
    config = start_from(finetune(), source)
    model = replace(config.model, dropout=0.3, num_queries=5, proposals="valid", features="per_image")
    wanted = replace(config, model=model, preprocessing=replace(config.preprocessing, mean=(0.0, 0.0, 0.0)))
    free = changed(source, wanted)
    assert start_from(finetune(), free).model == model
    assert start_from(wanted, free) == wanted
    fill(build(free.checkpoint.model), plan(free, ["disc"]))
    with pytest.raises(ConfigError, match=r"model.hidden_dim is set to 64, and best.safetensors has 32"):
        changed(source, replace(config, model=replace(config.model, hidden_dim=64)))
    learned = source_of(["disc"], variant="refine")
    config = start_from(finetune(), learned)
    with pytest.raises(ConfigError, match=r"model.num_queries is set to 5"):
        changed(learned, replace(config, model=replace(config.model, num_queries=5)))


def test_frozen_heads_cannot_learn_new_classes(source_of):
    source = source_of(["disc", "star"])
    assert plan(source, ["star"], ("heads",)).fresh == []
    with pytest.raises(ConfigError, match=r"freeze holds heads, but best\.safetensors does not know cube"):
        plan(source, ["star", "cube"], ("heads",))
