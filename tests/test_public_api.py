"""The names we promise, and what importing them costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import deformable_detr

# Removing a name, or changing what it means, is a breaking change: a major version and a line in CHANGELOG.md.
PUBLIC_NAMES = {
    "RECIPES",
    "DeformableDetrError",
    "DetectionDataset",
    "Detections",
    "Detector",
    "EvaluationReport",
    "Run",
    "Sample",
    "TrainConfig",
    "__version__",
    "paper_r50",
    "paper_r50_refine",
    "paper_r50_single_scale",
    "paper_r50_single_scale_dc5",
    "paper_r50_two_stage",
    "evaluate",
    "finetune",
    "load",
    "open_dataset",
    "resume",
    "small",
    "train",
    "write_report",
}
HEAVY = {
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "scipy",
    "PIL",
    "matplotlib",
    "hotcoco",
    "pycocotools",
    "tensorboard",
    "wandb",
    "mlflow",
}
SOURCE = Path(deformable_detr.__file__)


def test_the_public_names_are_frozen():
    assert set(deformable_detr.__all__) == PUBLIC_NAMES
    assert len(deformable_detr.__all__) == len(PUBLIC_NAMES)
    assert set(dir(deformable_detr)) == PUBLIC_NAMES


def test_the_public_names_are_sorted():
    def constants_then_classes_then_the_rest(name):
        return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)

    assert deformable_detr.__all__ == sorted(deformable_detr.__all__, key=constants_then_classes_then_the_rest)


@pytest.mark.parametrize("name", sorted(PUBLIC_NAMES))
def test_every_public_name_exists(name):
    assert getattr(deformable_detr, name) is not None


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        _ = deformable_detr.trian


def test_type_checkers_see_the_same_names():
    tree = ast.parse(SOURCE.read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    imported = {alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assigned = {node.targets[0].id for node in block.body if isinstance(node, ast.Assign)}
    assert imported | assigned == PUBLIC_NAMES - {"__version__"}


def modules_after(code):
    """Names of all modules a fresh interpreter has loaded after it ran the code."""
    program = f"{code}\nimport sys\nprint('loaded:', *sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split()[1:])


def test_importing_the_package_loads_nothing_heavy():
    loaded = modules_after("import deformable_detr")
    assert not loaded & HEAVY
    assert {name for name in loaded if name.startswith("deformable_detr")} == {
        "deformable_detr",
        "deformable_detr.core",
        "deformable_detr.core.version",
    }


def test_help_loads_nothing_heavy():
    """All pages of help in one go, as the command shows them."""
    loaded = modules_after(
        "import contextlib, io\n"
        "import typer\n"
        "from deformable_detr.cli.main import app\n"
        "pages = [['--help']] + [[name, '--help'] for name in typer.main.get_command(app).commands]\n"
        "assert len(pages) >= 6, pages\n"
        "for page in pages:\n"
        "    with contextlib.redirect_stdout(io.StringIO()) as shown:\n"
        "        app(page, standalone_mode=False)\n"
        "    assert 'Usage' in shown.getvalue(), page\n"
    )
    assert not loaded & HEAVY


def test_the_operator_loads_nothing_of_the_detector():
    loaded = modules_after("import deformable_detr.ops")
    own = {name for name in loaded if name.startswith("deformable_detr")}
    allowed = {
        "deformable_detr",
        "deformable_detr.core",
        "deformable_detr.core.version",
        "deformable_detr.core.types",
        "deformable_detr.core.errors",
    }
    assert {name for name in own if not name.startswith("deformable_detr.ops")} <= allowed
    assert not loaded & (HEAVY - {"torch", "numpy"})


def test_the_operator_does_not_wait_for_the_compiler():
    """Of PyTorch: importing it takes as long again as PyTorch itself."""
    loaded = modules_after("import deformable_detr.ops")
    assert not {"torch._dynamo", "torch._inductor", "triton"} & loaded
