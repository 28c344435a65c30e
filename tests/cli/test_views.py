import json

import pytest

from deformable_detr.cli.views import tta_of
from deformable_detr.core.errors import ConfigError
from deformable_detr.inference.tta import TTA


def test_options_become_settings():
    assert tta_of(False, None) is None
    assert tta_of(True, []) == TTA()
    assert tta_of(False, ["scales=[1,1.5]", "merge=soft_nms", "hflip=false"]) == TTA(
        scales=(1.0, 1.5), merge="soft_nms", hflip=False
    )
    with pytest.raises(ConfigError, match="unknown setting scale; did you mean scales"):
        tta_of(True, ["scale=2"])


def test_predict_looks_at_views(ddetr, weights, scenes):
    options = ("predict", weights, scenes / "val" / "scene_00000.jpg", "--device", "cpu", "--threshold", 0)
    plain, views = (json.loads(ddetr(*options, *more).out) for more in ([], ["--tta"]))
    assert views["detections"]
    assert views["detections"] != plain["detections"]
    result = ddetr(*options, "--tta-set", "iou=2")
    assert (result.code, "tta.iou is 2" in result.err) == (1, True)


def test_eval_says_with_which_views(ddetr, weights, scenes):
    options = ("eval", weights, "--data", scenes, "--workers", 0, "--device", "cpu", "--json")
    assert json.loads(ddetr(*options).out)["tta"] is None
    record = json.loads(ddetr(*options, "--tta-set", "scales=[1]").out)
    assert record["tta"] == {"scales": [1.0], "hflip": True, "vflip": False, "merge": "wbf", "iou": 0.55}
    assert record["images"] == 3
