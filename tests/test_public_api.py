"""The names we promise, and what importing them costs."""

import ast
import re
import subprocess
import sys
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest
import torch

import deformable_detr
from deformable_detr.core import errors

# Removing a name, or changing what it means, is a breaking change: a major version and a line in CHANGELOG.md.
PUBLIC_NAMES = {
    "ChainedMap",
    "Explanation",
    "GradientKind",
    "LayerPoints",
    "Proposal",
    "Missed",
    "explain",
    "TTA",
    "ClassLossName",
    "GroupPredictions",
    "OneToManyPredictions",
    "ClassRows",
    "CriterionLike",
    "DetectorOutput",
    "Predictions",
    "Target",
    "Losses",
    "Assignment",
    "CheckpointConfig",
    "ComputeConfig",
    "DataConfig",
    "RunConfig",
    "ScheduleConfig",
    "StoppingConfig",
    "ModelConfig",
    "DetectionModel",
    "Augmentation",
    "BackendError",
    "Checkpoint",
    "CheckpointError",
    "ClassMetrics",
    "ConfigError",
    "CriterionConfig",
    "DataError",
    "DETR",
    "DETRConfig",
    "DINO",
    "DINOConfig",
    "DeformableDETR",
    "DeformableDETRConfig",
    "Denoised",
    "DeformableDetrError",
    "Detection",
    "DetectionDataset",
    "Detections",
    "Detector",
    "EvaluationReport",
    "FormatName",
    "ImageLike",
    "InferencePrecision",
    "Metrics",
    "OptimizerConfig",
    "OutputError",
    "PrecisionName",
    "ProductsName",
    "Preprocessing",
    "Problem",
    "ProblemKind",
    "Ranks",
    "Reporter",
    "Run",
    "Sample",
    "Source",
    "TrainConfig",
    "TrainingError",
    "TrainingSplits",
    "TrainingState",
    "__version__",
    "evaluate",
    "load",
    "open_dataset",
    "recipes",
    "resume",
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
ERRORS = {name for name in vars(errors) if name.endswith("Error")}


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


def home_of(name):
    """The module that a public name comes from, and its tree."""
    module = import_module(f"deformable_detr.{deformable_detr._HOMES[name]}")
    for node in ast.parse(Path(module.__file__).read_text(encoding="utf-8")).body:  # a package only hands it on
        if isinstance(node, ast.ImportFrom) and name in {alias.name for alias in node.names}:
            module = import_module(node.module)
    return module, ast.parse(Path(module.__file__).read_text(encoding="utf-8"))


def annotations(node):
    """What a function's parameters and result, or a class' public methods and fields, are annotated with."""
    if isinstance(node, ast.FunctionDef):
        arguments = node.args
        every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
        yield from (one.annotation for one in every if one is not None and one.annotation is not None)
        if node.returns is not None:
            yield node.returns
        return
    for inner in node.body:
        if isinstance(inner, ast.AnnAssign) and not inner.target.id.startswith("_"):
            yield inner.annotation
        elif isinstance(inner, ast.FunctionDef) and (not inner.name.startswith("_") or inner.name.endswith("__")):
            yield from annotations(inner)


def names_in(annotation):
    """Names, also those in quotes; shapes such as "batch 3 height width" are no Python."""
    for part in ast.walk(annotation):
        if isinstance(part, ast.Name):
            yield part.id
        elif isinstance(part, ast.Constant) and isinstance(part.value, str):
            with suppress(SyntaxError):
                yield from names_in(ast.parse(part.value, mode="eval").body)


def our_names(tree):
    """Names at the top of a module that are ours: made there, or imported from another module of the package."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.ImportFrom) and node.module.startswith("deformable_detr"):
            yield from (alias.name for alias in node.names)


def definitions(name):
    """The tree of what a public name means, with that of its module: for recipes each of them, for the rest one."""
    if name == "recipes":
        tree = ast.parse(Path(deformable_detr.recipes.__file__).read_text(encoding="utf-8"))
        wanted = set(deformable_detr.recipes.__all__)
    else:
        _, tree = home_of(name)
        wanted = {"Detector" if name == "load" else name}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name in wanted:
            yield tree, node


@pytest.mark.parametrize("name", sorted(PUBLIC_NAMES - {"__version__"}))
def test_what_a_public_name_mentions_is_public(name):
    """Whoever calls `train` can write down the type of all it takes and gives, and so on from there.

    A network is looked at from outside only: what it is made of is at home in `deformable_detr.models`. Private names
    and type variables are shorthand.
    """
    thing = getattr(deformable_detr, name)
    if isinstance(thing, type) and issubclass(thing, torch.nn.Module):
        return
    mentioned = set()
    for tree, node in definitions(name):
        variables = {
            one.targets[0].id
            for one in tree.body
            if isinstance(one, ast.Assign) and isinstance(one.value, ast.Call) and "TypeVar" in ast.dump(one.value.func)
        }
        ours = {one for one in our_names(tree) if not one.startswith("_")} - variables
        mentioned |= {one for annotation in annotations(node) for one in names_in(annotation)} & ours
        for part in ast.walk(node):
            if isinstance(part, ast.FunctionDef | ast.ClassDef):
                raises = (ast.get_docstring(part) or "").partition("Raises:\n")[2]
                mentioned |= {one for one in re.findall(r"^ +(\w+Error): ", raises, re.MULTILINE) if one in ERRORS}
    assert mentioned - PUBLIC_NAMES == set()


def test_what_is_mentioned_is_found_at_all():
    """The test above passes where it looks at nothing."""

    def found(name):
        return {
            one
            for tree, node in definitions(name)
            for annotation in annotations(node)
            for one in names_in(annotation)
            if one in set(our_names(tree))
        }

    assert {"Preprocessing", "Reporter", "Detections", "Detector", "ImageLike"} <= found("Detector")
    assert {"TrainConfig", "DetectionDataset", "FormatName", "Source", "Reporter", "Run"} <= found("train")
    assert {"Metrics", "Detections", "DetectionDataset"} <= found("EvaluationReport")
    assert found("recipes") == {"TrainConfig"}


def test_recipes_are_functions_of_one_module():
    recipes = deformable_detr.recipes
    assert recipes.small() == recipes.RECIPES["small"]()
    assert set(recipes.RECIPES) < set(recipes.__all__)
    assert all(hasattr(recipes, name) for name in recipes.__all__)
    for name in ("small", "RECIPES", "paper_r50"):
        with pytest.raises(AttributeError):
            getattr(deformable_detr, name)


@cache
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
