"""What is installed: the wheel's contents, and the package used from it and from the checkout."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import rsseg_cli

ROOT = Path(__file__).resolve().parent.parent
FIND = (  # where the parts lie, without the seconds that loading torch takes
    "from importlib.util import find_spec\n"
    "for name in ('rsseg_cli.models.bicor_seg', 'rsseg_cli.weights'): print(find_spec(name).origin)"
)
SOURCES = ("rsseg_cli", "models", "weights", "setup.py", "pyproject.toml", "README.md", "LICENSE")


def python(code: str, cwd: Path, *path: Path) -> str:
    env = {"PYTHONPATH": ":".join(map(str, path)), "PATH": "/usr/bin:/bin"}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=env, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built by way of the source distribution, from a copy, so that the checkout stays clean."""
    source = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(source / "dist"), str(source)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout[-3000:] + built.stderr[-3000:]
    (path,) = (source / "dist").glob("*.whl")
    return path


def test_wheel_holds_the_package_alone(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"rsseg_cli", f"rsseg-{rsseg_cli.__version__}.dist-info"}
    expected = {
        "rsseg_cli/py.typed",
        *(f"rsseg_cli/{path.relative_to(ROOT / 'rsseg_cli')}" for path in (ROOT / "rsseg_cli").rglob("*.py")),
        *(
            f"rsseg_cli/{path.relative_to(ROOT)}"
            for folder in ("models", "weights")
            for path in (ROOT / folder).iterdir()
            if path.suffix in {".py", ".safetensors", ".md"}
        ),
    }
    assert expected <= set(names)
    metadata = f"rsseg-{rsseg_cli.__version__}.dist-info"
    assert f"{metadata}/licenses/LICENSE" in names
    with zipfile.ZipFile(wheel) as archive:
        assert b"rsseg = rsseg_cli.cli.main:main" in archive.read(f"{metadata}/entry_points.txt")


def test_installed_package_uses_its_own_networks(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    networks, weights = python(FIND, tmp_path, site).splitlines()
    assert networks == str(site / "rsseg_cli" / "models" / "bicor_seg.py")
    assert weights == str(site / "rsseg_cli" / "weights" / "__init__.py")


def test_build_from_a_repository_keeps_the_commit(tmp_path: Path) -> None:
    """Of a repository of its own, of which the build sees what it needs alone."""
    for name in ("setup.py", "rsseg_cli/__init__.py", "rsseg_cli/_version.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "rsseg"\nversion = "0"\n', encoding="utf-8")
    git = ["git", "-c", "user.name=A", "-c", "user.email=a@b.c"]
    for command in (
        ["git", "init", "-q"],
        ["git", "add", "."],
        [*git, "commit", "-qm", "all"],
        [sys.executable, "setup.py", "-q", "build_py", "-d", "built"],
    ):
        subprocess.run(command, cwd=tmp_path, check=True)
    commit = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=tmp_path, text=True).strip()
    built = tmp_path / "built"
    said = python("from rsseg_cli._version import source_commit; print(source_commit())", built, built)
    assert said == commit[:12]


def test_checkout_works_uninstalled(tmp_path: Path) -> None:
    networks, weights = python(FIND, tmp_path, ROOT).splitlines()
    assert Path(networks).resolve() == ROOT / "models" / "bicor_seg.py"
    assert Path(weights).resolve() == ROOT / "weights" / "__init__.py"


def test_library_loads_its_parts_on_first_use(tmp_path: Path) -> None:
    code = (
        "import sys, rsseg_cli; assert not {'torch', 'numpy', 'rasterio'} & set(sys.modules)\n"
        "from rsseg_cli import predict, PredictConfig, PredictResult; print(predict.__module__)\n"
        "try: rsseg_cli.nosuch\n"
        "except AttributeError as err: print(err)"
    )
    lines = python(code, tmp_path, ROOT).splitlines()
    assert lines == ["rsseg_cli.pipeline.run", "module 'rsseg_cli' has no attribute 'nosuch'"]
    for name in rsseg_cli.__all__:
        assert getattr(rsseg_cli, name)


def test_floors_of_libraries_leave_out_versions_with_published_vulnerabilities() -> None:
    """Earlier ones run code of checkpoints (weights_only's unpickler, Lightning's loading)."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    floors = dict(item.split(">=") for item in project["dependencies"])
    for name, safe in (("lightning", (2, 6, 6)), ("torch", (2, 10))):
        assert tuple(map(int, floors[name].split("."))) >= safe


def test_tests_stay_on_this_machine() -> None:
    with socket.socket() as outside, pytest.raises(PermissionError, match=r"192\.0\.2\.1"):
        outside.connect(("192.0.2.1", 80))
