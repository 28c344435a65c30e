"""What commands have loaded when they look at their input: a wrong path does not wait for what the work needs."""

import json
import subprocess
import sys

import pytest

# All that takes long to import or that a wrong path does not need, ours and what we depend on; torch._dynamo is what
# torchvision and timm bring along.
WATCHED = {
    "PIL.ImageDraw",
    "deformable_detr.report",
    "deformable_detr.training",
    "defusedxml",
    "filelock",
    "hotcoco",
    "huggingface_hub",
    "matplotlib",
    "rich",
    "safetensors",
    "scipy",
    "sympy",
    "tensorboard",
    "timm",
    "torch",
    "torch._dynamo",
    "torch.distributed.tensor",
    "torch.utils.tensorboard",
    "torchvision",
    "transformers",
    "triton",
}
LOST = '{"images": [{"id": 1, "file_name": "a.png"}], "annotations": [], "categories": [{"id": 1, "name": "cat"}]}'
NO_DATA, NO_WEIGHTS = "no data set recognised", "no such checkpoint file"
# One process for all, since each would import torch again: a command may load what the ones before it have loaded.
COMMANDS = [
    (["check-data", "EMPTY"], NO_DATA, set()),
    (["train", "--data", "EMPTY"], NO_DATA, set()),
    (["train", "--data", "LOST"], "none of its 1 images is there", set()),
    (["train", "--data", "EMPTY", "--devices", "2"], NO_DATA, set()),
    (["convert-data", "EMPTY", "OUT", "--to", "coco"], NO_DATA, set()),
    (["predict", "WEIGHTS", "MISSING.jpg"], "no such image", {"torch", "safetensors"}),
    (["predict", "MISSING.safetensors", "IMAGE"], NO_WEIGHTS, set()),
    (["explain", "WEIGHTS", "MISSING.jpg"], "no such image", set()),
    (["explain", "MISSING.safetensors", "IMAGE"], NO_WEIGHTS, set()),
    (["eval", "WEIGHTS", "--data", "EMPTY"], NO_DATA, set()),
    # The data set is good. A run that has ended writes a report, which is a module of ours that draws.
    (
        ["train", "--data", "SCENES", "--weights", "MISSING.safetensors"],
        NO_WEIGHTS,
        {"deformable_detr.training", "deformable_detr.report", "PIL.ImageDraw"},
    ),
    (["train", "--data", "EMPTY", "--weights", "WEIGHTS"], NO_DATA, set()),
    (["predict", "WEIGHTS", "IMAGE", "--device", "cuda:99"], "is not here", set()),
    # The data set is good, and the terminal is told so.
    (["eval", "MISSING.safetensors", "--data", "SCENES"], NO_WEIGHTS, {"rich"}),
]
PROGRAM = """
import json, sys
from deformable_detr.cli.main import app
from deformable_detr.core.errors import DeformableDetrError

for command in json.loads(sys.argv[1]):
    try:
        app(command, standalone_mode=False)
        said = "nothing was wrong"
    except DeformableDetrError as error:
        said = str(error)
    print(json.dumps([said, sorted(sys.modules)]))

from PIL import Image
from deformable_detr.inference.drawing import draw_objects

draw_objects(Image.new("RGB", (96, 64)), [(9.0, 8.0, 40.0, 35.0)], [0], ["čmelák"])
print(json.dumps(["drawn", sorted(sys.modules)]))
"""


@pytest.fixture
def seen(weights, scenes, tmp_path):
    """What each command said, and which of the watched modules were loaded then; at last for a picture drawn."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "lost.json").write_text(LOST)
    names = {
        "EMPTY": tmp_path / "empty",
        "LOST": tmp_path / "lost.json",
        "SCENES": scenes,
        "WEIGHTS": weights,
        "IMAGE": scenes / "val" / "scene_00000.jpg",
    }
    commands = [[str(names.get(word, word)) for word in command] for command, _, _ in COMMANDS]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(commands)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    return [(said, WATCHED & set(loaded)) for said, loaded in map(json.loads, done.stdout.splitlines())]


def test_commands_look_at_their_input_first(seen):
    allowed = set()
    for (command, error, more), (said, loaded) in zip(COMMANDS, seen, strict=False):
        assert error in said, command
        allowed |= more
        assert loaded <= allowed, command
    # Names beyond ASCII take matplotlib's font, not matplotlib.
    assert len(seen) == len(COMMANDS) + 1
    assert seen[-1][0] == "drawn"
    assert seen[-1][1] <= allowed
    # The list above would allow anything if nothing were found by its name.
    assert {"torch", "safetensors", "deformable_detr.training", "PIL.ImageDraw"} <= seen[-1][1]


def test_prediction_needs_neither_scipy_nor_matplotlib_nor_hotcoco(ddetr, weights, scenes, tmp_path, monkeypatch):
    for name in ("scipy", "scipy.optimize", "matplotlib", "hotcoco", "hotcoco.metrics"):
        monkeypatch.setitem(sys.modules, name, None)  # to import it now is an error
    image = scenes / "val" / "scene_00000.jpg"
    result = ddetr("predict", weights, image, "--threshold", 0, "--output", tmp_path / "out", "--device", "cpu")
    assert (result.code, len(json.loads(result.out)["detections"])) == (0, 33), result.err
