from dataclasses import replace

import pytest

from deformable_detr.core.errors import ConfigError
from deformable_detr.models import MODELS
from deformable_detr.runs.config_file import from_json, to_json
from deformable_detr.runs.recipes import small, with_backbone
from tests.dense import KIND, DenseConfig


def test_a_file_says_its_version_and_its_model(monkeypatch):
    data = to_json(small())
    assert (data["schema_version"], data["model"]["name"]) == (2, "deformable_detr")
    with pytest.raises(ConfigError, match=r"it.json has schema version 3, .* reads up to 2"):
        from_json({**data, "schema_version": 3}, "it.json")
    with pytest.raises(ConfigError, match=r"setting model.name is 'yolo'; there are deformable_detr"):
        from_json({**data, "model": {"name": "yolo"}}, "it.json")
    monkeypatch.setitem(MODELS, "dense", KIND)
    dense = replace(small(), model=DenseConfig(dim=5))
    assert to_json(dense)["model"] == {"name": "dense", "num_classes": 3, "dim": 5, "dropout": 0.0}
    assert from_json(to_json(dense), "it.json") == dense
    assert dense.with_settings({"model.dropout": 0.5}).model == DenseConfig(dim=5, dropout=0.5)
    with pytest.raises(ConfigError, match=r"unknown setting model.num_queries"):
        dense.with_settings({"model.num_queries": 5})
    with pytest.raises(ConfigError, match="has no backbone to choose: dense, 5 channels"):
        with_backbone(dense, name="resnet18", weights=None)
