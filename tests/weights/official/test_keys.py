import json
from dataclasses import replace

import pytest
import torch

from deformable_detr.core.errors import CheckpointError
from deformable_detr.models import DeformableDETRConfig, build
from deformable_detr.weights.official.keys import from_official_keys, to_official_keys

R50 = DeformableDETRConfig()
CONFIGS = {
    "base": (R50, 561),
    "refine": (replace(R50, variant="refine"), 597),
    "two_stage": (replace(R50, variant="two_stage"), 630),
    "single_scale": (replace(R50, num_levels=1), 549),
}


@pytest.fixture(scope="module")
def weights():
    """Parameters without memory: only names and shapes matter."""
    found = {}
    for name, (config, _) in CONFIGS.items():
        with torch.device("meta"):
            found[name] = build(config, load_backbone_weights=False).state_dict()
    return found


@pytest.mark.parametrize("name", CONFIGS)
def test_the_number_of_keys_is_the_official_one(weights, name):
    config, count = CONFIGS[name]
    assert len(to_official_keys(weights[name], config)) == count


@pytest.mark.parametrize(("name", "file"), [("base", "keys_plain.json"), ("two_stage", "keys_two_stage.json")])
def test_keys_and_shapes_are_the_official_ones(weights, shared, name, file):
    expected = json.loads((shared / "checks" / "model" / file).read_text())
    ours = to_official_keys(weights[name], CONFIGS[name][0])
    assert {key: list(tensor.shape) for key, tensor in ours.items()} == expected


@pytest.mark.parametrize("variant", ["base", "refine", "two_stage"])
def test_there_and_back_changes_nothing(tiny_config, variant):
    config = replace(tiny_config.model, variant=variant)
    own = build(config).state_dict()
    back = from_official_keys(to_official_keys(own, config), config)
    counters = {name for name in own if name.endswith("num_batches_tracked")}
    assert back.keys() == own.keys() - counters
    assert all(torch.equal(back[name], own[name]) for name in back)


def test_copies_that_differ_are_refused(tiny_config):
    config = replace(tiny_config.model, variant="base")
    official = to_official_keys(build(config).state_dict(), config)
    official["class_embed.1.bias"] = official["class_embed.1.bias"] + 1
    with pytest.raises(CheckpointError, match=r"class_embed\.1\.bias should be a copy of class_embed\.0\.bias"):
        from_official_keys(official, config)


def test_foreign_names_are_refused(tiny_config):
    with pytest.raises(CheckpointError, match=r"'total_ops' is not a parameter"):
        from_official_keys({"total_ops": torch.ones(1)}, tiny_config.model)
