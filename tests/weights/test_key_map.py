import pytest

from deformable_detr.weights.key_map import KeyMap

NAMES = KeyMap(
    (
        ("body.", "backbone.0."),
        ("layers.#.ffn.linear#.", "decoder.layers.#.fc#."),
        ("layers.#.norm.", "decoder.layers.#.norm1."),
        ("layer%.#.conv%.*", "stages.%.layers.#.%.convolution.*"),
        ("embed", "level_embed"),
        ("layers.#.", "other.#."),
    )
)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("body.layer1.0.weight", "backbone.0.layer1.0.weight"),
        ("layers.11.ffn.linear2.bias", "decoder.layers.11.fc2.bias"),
        ("layers.0.norm.weight", "decoder.layers.0.norm1.weight"),  # the first row that matches, not the last
        ("layer4.10.conv3.running_mean", "stages.3.layers.10.2.convolution.running_mean"),
        ("embed", "level_embed"),
        ("layers.7.x", "other.7.x"),
    ],
)
def test_names_both_ways(ours, theirs):
    assert NAMES.to_theirs(ours) == theirs
    assert NAMES.to_ours(theirs) == ours


@pytest.mark.parametrize(
    "name", ["", "a.body.x", "bodyx", "layer1.0.conv1.0.weight", "layer1.0.conv1.", "layers.x.norm."]
)
def test_names_that_no_row_has(name):
    assert NAMES.to_theirs(name) is None
    assert NAMES.to_ours(name) is None


def test_a_last_part_is_the_last():
    assert NAMES.to_ours("stages.0.layers.0.0.convolution.weight") == "layer1.0.conv1.weight"
    assert NAMES.to_ours("stages.0.layers.0.0.convolution.0.weight") is None
