from dataclasses import replace

import pytest
from torch import nn

from deformable_detr.core.errors import ConfigError
from deformable_detr.models import (
    MODELS,
    DeformableDETRConfig,
    DetectionModel,
    DETRConfig,
    ModelConfig,
    build,
    interface_of,
)
from deformable_detr.models.interface import (
    GivenModelConfig,
    class_name_of,
    class_scores_of,
    given_config,
    training_tensors_of,
)
from tests.dense import KIND, Dense, DenseConfig


def test_what_a_network_lacks_is_listed():
    with pytest.raises(ConfigError, match="Linear cannot be trained as it is: it lacks num_classes, parts, offsets"):
        interface_of(nn.Linear(2, 3))
    half = Dense(DenseConfig())
    del type(half).offsets
    try:
        with pytest.raises(ConfigError, match=r"it lacks offsets; .*interface.DetectionModel says"):
            interface_of(half)
    finally:
        Dense.offsets = ()


@pytest.mark.parametrize("variant", ["base", "refine", "two_stage"])
def test_the_networks_of_the_package_have_all_of_it(tiny_config, variant):
    config = replace(tiny_config.model, variant=variant, num_classes=5)
    model = build(config)
    assert isinstance(model, DetectionModel)
    assert isinstance(config, ModelConfig)
    assert model.num_classes == 5
    names = [name for name, _ in model.named_parameters()]
    starts = [start for part in model.parts.values() for start in part]
    assert all(any(name.startswith(start) for start in starts) for name in names)
    rows = model.class_rows
    by_class = [name for name in names if name.startswith(rows.by_class)]
    assert all(len(model.get_parameter(name)) == 5 for name in by_class)
    assert len(by_class) == 2 * (1 if variant == "base" else config.decoder_layers)
    assert len(model.layers()) == config.encoder_layers + config.decoder_layers
    inside = [module for one in model.gathered_together() for module in one.parameters()]
    assert {id(parameter) for layer in model.layers() for parameter in layer.parameters()} <= set(map(id, inside))


def test_settings_that_no_tensor_depends_on_are_free(tiny_config):
    def shapes(config):
        model = build(config)
        state = {name: tensor.shape for name, tensor in model.state_dict().items()}
        return {name: shape for name, shape in state.items() if not name.startswith(training_tensors_of(model))}

    config = replace(tiny_config.model, variant="two_stage")
    other = {"dropout": 0.3, "frozen_stages": 0, "features": "per_image", "proposals": "distinct", "num_queries": 7}
    other |= {"denoising_queries": 5, "box_noise": 0.4, "label_noise": 0.2}
    branches = [{"query_groups": 3}, {"hybrid_queries": 5, "hybrid_repeats": 2}]
    assert config.free_settings == other.keys() | branches[0].keys() | branches[1].keys()
    for more in branches:
        assert shapes(replace(config, **other, **more)) == shapes(config)
        assert shapes(replace(config, variant="refine", **more)) == shapes(replace(config, variant="refine"))
    assert "num_queries" not in replace(config, variant="refine").free_settings


def test_where_a_network_starts_from():
    config = DeformableDETRConfig(backbone="resnet18")
    assert (config.pretrained_parts, config.downloads) == (("backbone",), "weights of resnet18")
    at_home = replace(config, backbone_weights="/somewhere/r18.pth")
    assert (at_home.downloads, at_home.portable().backbone_weights) == ("", "r18.pth")
    random = replace(config, backbone_weights="none", frozen_stages=0, frozen_batch_norm=False)
    assert (random.pretrained_parts, random.downloads) == ((), "")
    assert random.describe() == "base, backbone resnet18 (weights: none)"
    assert random.with_classes(7) == replace(random, num_classes=7)


def test_models_are_known_by_name(monkeypatch):
    assert MODELS.name_of(DeformableDETRConfig()) == "deformable_detr"
    monkeypatch.setitem(MODELS, "dense", KIND)
    assert MODELS.name_of(DenseConfig()) == "dense"
    assert isinstance(MODELS.build(DenseConfig(num_classes=4)), Dense)
    assert MODELS.class_rows(DenseConfig()) == Dense.class_rows
    assert MODELS.parts(DenseConfig()) == Dense.parts


def test_a_module_of_ones_own_is_known_by_its_class():
    model = Dense(DenseConfig(num_classes=4))
    config = given_config(model)
    assert config == GivenModelConfig(class_name="tests.dense.Dense", num_classes=4)
    assert (class_name_of(model), MODELS.name_of(config)) == ("tests.dense.Dense", "given")
    assert (MODELS.parts(config), MODELS.class_rows(config)) == ({}, ((), ()))
    for settings in ({"class_name": "a\x1b[31m"}, {"class_name": "x" * 1001}, {"num_classes": 0}):
        with pytest.raises(
            ConfigError, match=r"class_name is '.*cannot be the name of a class|num_classes is 0; it must"
        ):
            GivenModelConfig(**settings)
    with pytest.raises(ConfigError, match=r"tests.dense.Dense is a class of somebody's own.*model="):
        MODELS.build(config)


def test_class_scores_are_sigmoids_unless_a_network_says_otherwise(monkeypatch):
    network = Dense(DenseConfig())
    assert class_scores_of(network) == class_scores_of(Dense) == "sigmoid"
    monkeypatch.setattr(Dense, "class_scores", "softmax", raising=False)
    assert class_scores_of(network) == "softmax"
    monkeypatch.setattr(Dense, "class_scores", "tanh")
    with pytest.raises(ConfigError, match="class_scores is 'tanh'; there are sigmoid, softmax"):
        interface_of(network)


def test_what_models_say_before_they_are_built():
    assert MODELS.class_scores(DeformableDETRConfig()) == "sigmoid"
    assert MODELS.class_scores(DETRConfig()) == "softmax"
    assert MODELS.class_scores(GivenModelConfig(class_name="a.B", num_classes=2)) is None
    assert MODELS.offsets(DETRConfig()) == ()
    assert "reference_points" in MODELS.offsets(DeformableDETRConfig())
    assert MODELS.offsets(GivenModelConfig(class_name="a.B", num_classes=2)) is None
