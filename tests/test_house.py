"""The rules of the house that no linter knows: where files lie, how long they are, what must be said in them."""

import ast
import functools
import re
import subprocess
import sys
import typing
from dataclasses import fields, is_dataclass
from pathlib import Path

import grimp
import pytest

from deformable_detr.runs.config import TrainConfig

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "deformable_detr"
MODULES = sorted(path.relative_to(SOURCE) for path in SOURCE.rglob("*.py"))
LONGEST = 400
# Backends of one contract are tested by the same tests, each against the others.
TESTED_TOGETHER = {
    Path("ops/grid_sample.py"): "test_msda.py",
    Path("ops/reference.py"): "test_msda.py",
    Path("ops/triton_kernels.py"): "test_triton.py",
    Path("ops/triton_sampling.py"): "test_triton.py",
}
# Where anything may go wrong and must not end a training: what foreign services raise, and the page at its very end.
# Both say what it was.
CATCH_ALL = [Path("report/write.py"), Path("training/loggers.py")]
# Functions of one name in three modules or more are alike on purpose there.
SHARED_NAMES = {
    # What a backend of the operator has, and what its definition has.
    "sample": {"ops/cpu.py", "ops/grid_sample.py", "ops/reference.py", "ops/triton.py"},
    "attend": {"ops/cpu.py", "ops/grid_sample.py", "ops/reference.py", "ops/triton.py"},
    "why_not": {"ops/cpu.py", "ops/grid_sample.py", "ops/triton.py"},
    # What a format of data sets has; a checkpoint is loaded and saved, too.
    "find_splits": {
        str(module) for module in MODULES if "\ndef find_splits(" in SOURCE.joinpath(module).read_text(encoding="utf-8")
    },
    "load": {"data/formats/coco.py", "data/formats/voc.py", "data/formats/yolo.py", "weights/checkpoint.py"},
    "save": {"data/formats/coco.py", "data/formats/voc.py", "data/formats/yolo.py", "weights/checkpoint.py"},
    # What a model has.
    "build": {"models/deformable.py", "models/detr.py", "models/dino.py"},
    # A recipe, the function that trains it, and its command, which is named after its function.
    "demo": {"cli/demo.py", "runs/recipes.py", "training/demo.py"},
}
NEEDS_A_LINE_ABOVE = re.compile(r"(Of|The same|What|And|Likewise)\b")
FORBIDDEN_ROOMS = {"utils", "util", "misc", "common", "helpers", "helper", "tools", "lib"}
# A path of somebody's machine. Written so that it does not find itself.
MACHINE_PATH = re.compile(r"(?<![\w.~])/(?:work|root|home|Users|mnt|opt)/[\w.-]+")
TEXT_SUFFIXES = {".py", ".md", ".toml", ".json", ".jsonl", ".yml", ".yaml", ".cfg", ".lock", ".txt", ""}


@functools.cache
def tree_of(module):
    return ast.parse((SOURCE / module).read_text(encoding="utf-8"))


def test_there_are_modules():
    assert len(MODULES) > 20


@pytest.mark.parametrize("module", [m for m in MODULES if m.name != "__init__.py"], ids=str)
def test_every_module_has_its_tests(module):
    expected = ROOT / "tests" / module.parent / TESTED_TOGETHER.get(module, f"test_{module.name}")
    assert expected.is_file(), f"write {expected.relative_to(ROOT)}"


def test_no_file_is_long():
    lengths = {str(m): len((SOURCE / m).read_text(encoding="utf-8").splitlines()) for m in MODULES}
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}


def test_every_room_has_a_meaning():
    parts = {part for module in MODULES for part in module.with_suffix("").parts}
    assert not parts & FORBIDDEN_ROOMS


def test_packages_only_export():
    """Nothing but imports, names and a lazy `__getattr__` in any `__init__.py`."""
    allowed = (ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign, ast.If, ast.Expr)
    for module in MODULES:
        if module.name != "__init__.py":
            continue
        for node in tree_of(module).body:
            lazy = isinstance(node, ast.FunctionDef) and node.name in ("__getattr__", "__dir__")
            assert isinstance(node, allowed) or lazy, f"{module}:{node.lineno}"


def public_definitions(tree):
    """Public functions and classes of a module, and public methods of its public classes, with their names."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node.name, node
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for inner in node.body:
                function = isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef) and not inner.name.startswith("_")
                # What overloads have in common is said once, where it is done.
                if function and "overload" not in map(ast.unparse, inner.decorator_list):
                    yield f"{node.name}.{inner.name}", inner


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_what_is_public_is_documented_and_annotated(module):
    tree = tree_of(module)
    if (SOURCE / module).stat().st_size:
        assert ast.get_docstring(tree), f"{module} needs one sentence at the top"
    for name, node in public_definitions(tree):
        place = f"{module}:{node.lineno} {name}"
        assert ast.get_docstring(node), f"{place} needs a docstring"
        if isinstance(node, ast.ClassDef):
            continue
        arguments = node.args
        every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
        bare = [a.arg for a in every if a is not None and a.annotation is None and a.arg not in ("self", "cls")]
        assert not bare, f"{place}: {bare} without annotation"
        assert node.returns is not None, f"{place} does not say what it returns"


def docstrings(tree):
    """Line and text of every docstring of a module, of its classes and functions, and of every string below a field."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        for statement in body if isinstance(body, list) else []:
            string = statement.value if isinstance(statement, ast.Expr) else None
            if isinstance(string, ast.Constant) and isinstance(string.value, str):
                yield statement.lineno, string.value


def unreadable_alone(source):
    """Line number of every docstring that begins with a word which needs the lines above it."""
    return sorted(line for line, text in docstrings(ast.parse(source)) if NEEDS_A_LINE_ABOVE.match(text.strip()))


def test_words_that_need_a_line_above_are_found():
    source = (
        '"""Of all."""\nclass A:\n    """What is it."""\n    a: int\n    """\n    The same, longer."""\n    b: int\n'
    )
    source += (
        '    """Of"""\n    def f():\n        """And more.\n        """\n        def g():\n            "Likewise"\n'
    )
    assert unreadable_alone(source) == [1, 3, 5, 8, 10, 13]
    fine = '"""Offsets, and of what."""\nname = "What"\ndef f():\n    """The samples."""\n    return "Of"\n'
    assert unreadable_alone(fine) == []


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_first_lines_can_be_read_alone(module):
    """As a hover shows them: the first line names the thing, whatever stands above or below it in the file."""
    assert unreadable_alone((SOURCE / module).read_text(encoding="utf-8")) == []


def homes(kinds):
    """Names of definitions at the top of a module, and where each stands."""
    found = {}
    for module in MODULES:
        for node in tree_of(module).body:
            if isinstance(node, kinds):
                found.setdefault(node.name, set()).add(module.as_posix())
    return found


def test_a_class_has_a_name_of_its_own():
    assert {name: places for name, places in homes(ast.ClassDef).items() if len(places) > 1} == {}


def test_no_function_is_named_as_two_others():
    found = homes((ast.FunctionDef, ast.AsyncFunctionDef))
    assert {name: places for name, places in found.items() if len(places) > 2} == SHARED_NAMES


def circles(imports):
    """Groups of modules each of which imports, in the end, every other; Tarjan's strongly connected components."""
    number, lowest, waiting, groups = {}, {}, [], []

    def visit(module):
        number[module] = lowest[module] = len(number)
        waiting.append(module)
        for imported in imports[module]:
            if imported not in number:
                visit(imported)
            if imported in waiting:
                lowest[module] = min(lowest[module], lowest[imported])
        if lowest[module] == number[module]:
            start = waiting.index(module)
            groups.append(set(waiting[start:]))
            del waiting[start:]

    for module in imports:
        if module not in number:
            visit(module)
    return [group for group in groups if len(group) > 1]


def test_circles_are_found():
    assert circles({"a": {"b"}, "b": {"c", "d"}, "c": {"a"}, "d": {"e"}, "e": set(), "f": {"a"}}) == [{"a", "b", "c"}]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_no_module_imports_one_that_imports_it():
    """Within a folder, too; imports inside of functions count, and so do those of an `__init__`."""
    graph = grimp.build_graph("deformable_detr", cache_dir=None)
    assert len(graph.modules) > 100
    assert circles({module: graph.find_modules_directly_imported_by(module) for module in sorted(graph.modules)}) == []


def handlers(tree):
    return [node for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler)]


def test_nothing_catches_everything_or_prints():
    catching = []
    for module in MODULES:
        tree = tree_of(module)
        for handler in handlers(tree):
            caught = ast.unparse(handler.type) if handler.type is not None else "everything"
            if caught == "Exception":
                catching.append(module)
            assert caught not in ("everything", "BaseException"), f"{module}:{handler.lineno}"
        for node in ast.walk(tree):
            prints = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
            assert not prints, f"{module}:{node.lineno} prints"
    assert catching == CATCH_ALL


def configs(config_class):
    """A config and all those nested in it."""
    yield config_class
    for hint in typing.get_type_hints(config_class).values():
        if is_dataclass(hint):
            yield from configs(hint)


def attributes_read(outside):
    """Names of attributes that are read anywhere in the source, the body of the class `outside` not counted."""
    found = set()

    def visit(node):
        if isinstance(node, ast.ClassDef) and node.name == outside:
            return
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            found.add(node.attr)
        for child in ast.iter_child_nodes(node):
            visit(child)

    for module in MODULES:
        visit(tree_of(module))
    return found


def test_every_setting_has_an_effect():
    seen = list(configs(TrainConfig))
    assert len(seen) >= 6
    for config_class in seen:
        read = attributes_read(config_class.__name__)
        assert {field.name for field in fields(config_class)} - read == set(), config_class.__name__


def text_files():
    folders = ("src", "tests", "docs", "examples", "benchmarks", ".ci")
    found = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    here = [path for path in ROOT.iterdir() if path.is_file() and path.name != ".git"]  # a worktree has it as a file
    found += [path for path in here if not path.name.startswith(".coverage")]
    return [path for path in found if path.suffix in TEXT_SUFFIXES and "__pycache__" not in path.parts]


def test_no_file_knows_somebodys_machine():
    for path in text_files():
        found = MACHINE_PATH.search(path.read_text(encoding="utf-8"))
        assert found is None, f"{path.relative_to(ROOT)}: {found.group()}"


def test_imports_go_down():
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
