"""What a host of repositories reads: workflows, hooks, templates and the citation are valid and agree with the rest."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("[!c]*.yml"))
YAML = [*ROOT.glob(".github/**/*.yml"), ROOT / ".pre-commit-config.yaml", ROOT / "CITATION.cff"]


def label(path):
    return path.relative_to(ROOT).as_posix()


def read(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def steps(workflow):
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("path", YAML, ids=label)
def test_yaml_is_valid(path):
    assert isinstance(read(path), dict)


def test_there_are_workflows_and_forms():
    assert {path.stem for path in WORKFLOWS} == {"ci", "wheels"}
    assert len(FORMS) == 2


@pytest.mark.parametrize("path", WORKFLOWS, ids=label)
def test_workflows(path):
    workflow = read(path)
    assert {"push", "pull_request"} <= set(workflow[True])  # `on` is a boolean to YAML 1.1
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 60
    for step in steps(workflow):
        assert ("uses" in step) != ("run" in step)
        if "uses" in step:
            assert re.fullmatch(r"actions/[a-z-]+@v\d+", step["uses"])


def test_continuous_integration_is_one_script():
    commands = [step["run"] for step in steps(read(ROOT / ".github" / "workflows" / "ci.yml")) if "run" in step]
    assert commands == [".ci/run"]
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o100


def test_paths_that_workflows_name_exist():
    workflow = read(ROOT / ".github" / "workflows" / "wheels.yml")
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["cibuildwheel"]
    named = [path.removesuffix("/**") for path in workflow[True]["pull_request"]["paths"]]
    named += re.findall(
        r"\.ci/[\w.]+", " ".join([settings["test-command"], *(s.get("run", "") for s in steps(workflow))])
    )
    assert named.count(".ci/check_wheel.py") == 3
    for path in named:
        assert (ROOT / path).exists(), path


def test_hooks_are_what_make_check_runs():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    recipe = re.search(r"^check: .*\n((?:\t.*\n)+)", makefile, re.MULTILINE).group(1)
    checks = {line.removeprefix("$(BIN)/") for line in recipe.replace("\t", "").splitlines()}
    hooks = [hook for repo in read(ROOT / ".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    assert all(hook["language"] == "system" and hook["entry"].startswith(".venv/bin/") for hook in hooks)
    # A hook is given the files; what `make check` says of all of them, and only checks, is the same command.
    entries = {hook["entry"].removeprefix(".venv/bin/").removesuffix(" --force-exclude") for hook in hooks}
    assert entries == {check.removesuffix(" .").removesuffix(" --check") for check in checks}


@pytest.mark.parametrize("path", FORMS, ids=label)
def test_issue_forms(path):
    form = read(path)
    assert form["name"]
    assert form["description"]
    for part in form["body"]:
        assert part["type"] == "textarea"
        assert part["attributes"]["label"]


def test_citation():
    citation = read(ROOT / "CITATION.cff")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert citation["license"] == project["license"]
    paper = citation["preferred-citation"]
    assert [author["family-names"] for author in paper["authors"]] == ["Zhu", "Su", "Lu", "Li", "Wang", "Dai"]
    assert (paper["year"], paper["type"]) == (2021, "conference-paper")
    assert "arXiv:2010.04159" in {identifier["value"] for identifier in paper["identifiers"]}
