"""The documentation site builds, and its reference has every public name and every setting."""

import ast
import os
import re
import shutil
import subprocess
import sys
import typing
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

import deformable_detr
from deformable_detr import ops
from deformable_detr.models import MODELS
from deformable_detr.runs.config import TrainConfig

ROOT = Path(__file__).parents[2]

# The site is built once for all of them.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site, of a copy of the pages, so that nothing in the checkout is written."""
    for package in ("zensical", "mkdocstrings"):
        pytest.importorskip(package, reason="needs the extra `docs`; `make setup` installs it")
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(ROOT / "docs", folder / "docs")
    shutil.copytree(ROOT / "src" / "deformable_detr", folder / "src" / "deformable_detr")
    shutil.copy(ROOT / "zensical.toml", folder)
    # Long signatures are broken into lines by ruff, which is looked for on the path.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict"],
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "build" / "site"


def html(site, page):
    return (site / "reference" / page / "index.html").read_text(encoding="utf-8")


def names(site, page):
    """The headings of a page that stand for something in the source."""
    return set(re.findall(r'<h\d id="(deformable_detr[\w.]*)"', html(site, page)))


@pytest.mark.parametrize(("page", "package"), [(".", deformable_detr), ("ops", ops)], ids=["package", "operator"])
def test_every_public_name_is_there(site, page, package):
    assert {f"{package.__name__}.{name}" for name in package.__all__} - names(site, page) == set()


def settings(config_class):
    """The full name of every setting of a config and of those nested in it, of every model that has a name."""
    hints = typing.get_type_hints(config_class)
    for field in fields(config_class):
        yield f"{config_class.__module__}.{config_class.__qualname__}.{field.name}"
        inside = [kind.config_class for kind in MODELS.values()] if "kinds" in field.metadata else []
        for group in (hints[field.name], *typing.get_args(hints[field.name]), *inside):
            if is_dataclass(group):
                yield from settings(group)


def test_every_setting_is_there(site):
    expected = set(settings(TrainConfig))
    assert len(expected) > 90
    assert expected - names(site, "settings") == set()


def test_sections_of_docstrings_become_tables(site):
    page = html(site, "ops")
    start = page.index('id="deformable_detr.ops.multi_scale_deformable_attention"')
    entry = page[start : page.index("<h4", start)]
    for section in ("Parameters:", "Returns:", "Raises:"):
        assert section in entry
    assert entry.count("<table>") == 3
    assert "<code>sampling_locations</code>" in entry
    assert "BackendError" in entry


def test_every_model_part_has_an_entry(site):
    """A file in models/layers or models/losses that nobody put on the page would be missing without a word."""
    shown = names(site, "models")
    for folder in ("layers", "losses"):
        for path in (ROOT / "src" / "deformable_detr" / "models" / folder).glob("[a-z]*.py"):
            assert f"deformable_detr.models.{folder}.{path.stem}" in shown, path.stem


def docstrings(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, node.value.value


def test_docstrings_hold_no_tags():
    """What stands in angle brackets, and not between backticks, would be HTML on the site and vanish."""
    for path in sorted((ROOT / "src").rglob("*.py")):
        for line, text in docstrings(ast.parse(path.read_text(encoding="utf-8"))):
            found = re.search(r"<[a-zA-Z/!][^>]*>", re.sub(r"`[^`]*`", "", text))
            assert found is None, f"{path.relative_to(ROOT)}:{line} {found.group()}"
