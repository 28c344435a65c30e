"""What the documentation says is so: its Python runs, its commands exist with these options, its links lead somewhere.

Python blocks run in a folder with a data set `photos`, a picture `street.jpg` and a checkpoint `best.safetensors`, and
with recipes exchanged for tiny ones, so that training takes a second and nothing is fetched. Blocks of one page run in
order and see each other's names.
"""

import pkgutil
import re
import shlex
from dataclasses import replace
from pathlib import Path

import click
import pytest
import torch
import typer

from deformable_detr.cli.main import app
from deformable_detr.cli.train import chosen_config
from deformable_detr.core.config import parsed_overrides
from deformable_detr.data.synthetic import SHAPES, draw_scenes
from deformable_detr.models import build
from deformable_detr.runs import recipes
from deformable_detr.weights import checkpoint

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "deformable_detr"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")


def blocks(page, language):
    return [code for name, code in BLOCK.findall(page.read_text(encoding="utf-8")) if name == language]


def label(page):
    return str(page.relative_to(ROOT))


DEMO = recipes.demo


def tiny():
    """The demo's recipe, smaller still."""
    config = recipes.with_image_size(DEMO(), 64)
    return config.with_settings(epochs=1, batch_size=4, num_workers=0)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A data set, and a checkpoint that has learnt nothing."""
    folder = tmp_path_factory.mktemp("docs")
    draw_scenes(folder / "photos", 4, 2, seed=0)
    (folder / "street.jpg").write_bytes((folder / "photos" / "val" / "scene_00000.jpg").read_bytes())
    config = replace(tiny().model, num_classes=len(SHAPES))
    torch.manual_seed(0)
    checkpoint.save(
        checkpoint.Checkpoint(
            weights=build(config).state_dict(),
            model=config,
            classes=SHAPES,
            category_ids=tuple(range(1, len(SHAPES) + 1)),
            preprocessing=tiny().preprocessing,
        ),
        folder / "best.safetensors",
    )
    return folder


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=label)
def test_python_runs(page, photos, tmp_path, monkeypatch):
    for entry in photos.iterdir():
        (tmp_path / entry.name).symlink_to(entry)
    monkeypatch.chdir(tmp_path)
    for name in list(recipes.RECIPES):
        monkeypatch.setattr(recipes, name, tiny)
        monkeypatch.setitem(recipes.RECIPES, name, tiny)
    names = {"__name__": "page"}
    for number, code in enumerate(blocks(page, "python"), start=1):
        exec(compile(code, f"{label(page)}, block {number}", "exec"), names)


def commands(page):
    """Every `ddetr` line of a page's shell blocks, continued lines joined and comments cut off."""
    for language in ("sh", "bash", "console"):
        for code in blocks(page, language):
            for line in code.replace("\\\n", " ").splitlines():
                words = shlex.split(line.removeprefix("$ "), comments=True)
                if words and words[0] == "ddetr":
                    yield words[1:]


COMMANDS = [(page, words) for page in PAGES for words in commands(page)]


@pytest.mark.parametrize(
    ("page", "words"), COMMANDS, ids=lambda value: " ".join(value) if isinstance(value, list) else label(value)
)
def test_commands_exist(page, words):
    group = typer.main.get_command(app)
    name, arguments = words[0], words[1:]
    if name.startswith("-"):
        assert name in {option for parameter in group.params for option in parameter.opts} | {"--help", "-h"}
        return
    assert name in group.commands, f"{label(page)}: ddetr {name}"
    for end in (">", "|"):  # what the shell does with the output is its own business
        arguments = arguments[: arguments.index(end)] if end in arguments else arguments
    command = group.commands[name]
    try:
        command.make_context(name, [word for word in arguments if word != "..."], parent=click.Context(group))
    except click.exceptions.Exit:
        assert {"--help", "-h"} & set(arguments)


SETTING = re.compile(r"--set\s+(\w[\w.]*)=(\"[^\"]*\"|[^\s`|]+)")
SETTINGS = sorted(
    {(page, name, value) for page in PAGES for name, value in SETTING.findall(page.read_text(encoding="utf-8"))}
)


@pytest.mark.parametrize(
    ("page", "name", "value"), SETTINGS, ids=lambda value: value if isinstance(value, str) else label(value)
)
def test_settings_that_are_mentioned_exist(page, name, value):
    if not (name.isupper() or value.isupper() or value == "..."):  # NAME=VALUE stands for any
        parsed_overrides(recipes.with_augmentation(DEMO(), "strong"), [f"{name}={value}"])


OF_AUGMENTATION = re.compile(r"`((?:--augment \w+ )?--set (augmentation\.[a-z]\w*=[^`\s]+))`")


@pytest.mark.parametrize(
    ("page", "text", "setting"),
    [(page, *found) for page in PAGES for found in OF_AUGMENTATION.findall(page.read_text(encoding="utf-8"))],
    ids=lambda value: value if isinstance(value, str) else label(value),
)
def test_settings_of_an_augmentation_can_be_typed_as_they_stand(page, text, setting):
    """`small` leaves the augmentation to the data, and refuses single settings of it."""
    words = text.split()
    preset = words[words.index("--augment") + 1] if "--augment" in words else None
    chosen_config("small", augment=preset, overrides=[setting])


def test_the_commands_are_all_documented():
    documented = {words[0] for _, words in COMMANDS}
    assert documented >= set(typer.main.get_command(app).commands)


def anchors(page):
    headings = re.findall(r"^#+ (.+)$", BLOCK.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=label)
def test_links_lead_somewhere(page):
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    for match in LINK.finditer(text):
        link = match.group(1) or match.group(2)
        if re.match(r"(https?|mailto):", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{label(page)}: {link}"
        assert ROOT in target.parents, f"{label(page)}: {link} leaves the project"
        if page.is_relative_to(ROOT / "docs"):
            assert target.is_relative_to(ROOT / "docs"), f"{label(page)}: {link} is not part of the site"
        if anchor:
            assert anchor in anchors(target), f"{label(page)}: {link}"


# Files of other projects.
ELSEWHERE = {"loss/loss_deformable_detr.py", "models/deformable_detr.py"}
FILE = re.compile(r"`((?:[\w.-]+/)+[\w.-]+\.(?:py|c|h|md|yml))`")
NAME = re.compile(r"(?<![/\w])deformable_detr(?:\.\w+)+")
REGISTERED = {"deformable_detr.sample", "deformable_detr.attend"}  # with PyTorch, below torch.ops


@pytest.mark.parametrize("page", PAGES, ids=label)
def test_files_that_are_named_exist(page):
    for name in set(FILE.findall(BLOCK.sub("", page.read_text(encoding="utf-8")))) - ELSEWHERE:
        assert (SOURCE / name).exists() or (ROOT / name).exists(), f"{label(page)}: {name}"


@pytest.mark.parametrize("page", PAGES, ids=label)
def test_names_that_are_mentioned_exist(page):
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    for name in set(NAME.findall(text)) - REGISTERED:
        assert pkgutil.resolve_name(name) is not None, f"{label(page)}: {name}"


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "zensical.toml").read_text(encoding="utf-8")
    for page in (ROOT / "docs").rglob("*.md"):
        name = page.relative_to(ROOT / "docs").as_posix()
        assert f'"{name}"' in navigation or name.startswith("adr/"), name
