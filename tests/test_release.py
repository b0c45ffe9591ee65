"""What a release promises: one version, one list of dependencies, commands in the docs that run."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import yaml

import rsseg_cli

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CONDA_NAMES = {"safetensors": "python-safetensors", "torch": "pytorch"}


def recipe() -> dict:
    return yaml.safe_load((ROOT / "recipe/recipe.yaml").read_text(encoding="utf-8"))


def test_one_version() -> None:
    assert recipe()["context"]["version"] == rsseg_cli.__version__
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert newest is not None
    assert newest[1] == rsseg_cli.__version__


def test_recipe_has_the_dependencies_of_the_package() -> None:
    own = {tuple(item.split("#")[0].strip().split(">=")) for item in PROJECT["dependencies"]}
    expected = {(CONDA_NAMES.get(name, name), floor) for name, floor in own}
    stated = {tuple(item.split(" >=")) for item in recipe()["requirements"]["run"]}
    assert stated == expected | {("python", PROJECT["requires-python"].removeprefix(">="))}


def test_workflow_tries_the_versions_that_are_promised() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    matrix = workflow["jobs"]["test"]["strategy"]["matrix"]
    prefix = "Programming Language :: Python :: "
    stated = {item for item in PROJECT["classifiers"] if item.startswith(prefix)}
    assert stated == {prefix + version for version in matrix["python"]}
    assert PROJECT["requires-python"] == f">={matrix['python'][0]}"
    first, last = matrix["python"][0], matrix["python"][-1]
    assert f"Python {first} to {last} " in (ROOT / "docs/install.md").read_text(encoding="utf-8")


def test_lock_holds_every_dependency() -> None:
    locked = set(
        re.findall(r"^([a-z0-9-]+)==", (ROOT / "requirements.lock").read_text(encoding="utf-8"), re.M)
    )
    wanted = [
        *PROJECT["dependencies"],
        *(item for items in PROJECT["optional-dependencies"].values() for item in items),
    ]
    assert {re.split(r"[>=\[]", item)[0] for item in wanted} <= locked


def test_site_lists_every_page() -> None:
    pages = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    listed = set(re.findall(r"[\w/@-]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8")))
    assert listed == pages
