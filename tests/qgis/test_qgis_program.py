"""How the plugin finds and runs the program, without QGIS: programs here are short scripts."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest

PLUGIN = Path(__file__).resolve().parents[2] / "qgis" / "rsseg"
specification = importlib.util.spec_from_file_location("plugin_program", PLUGIN / "program.py")
assert specification is not None
program: Any = importlib.util.module_from_spec(specification)
specification.loader.exec_module(program)  # type: ignore[union-attr]


class Feedback:
    """Keeps what is shown; cancels once a line of progress is."""

    def __init__(self, *, cancels: bool = False) -> None:
        self.cancels, self.shown = cancels, []  # type: ignore[var-annotated]

    def isCanceled(self) -> bool:
        return self.cancels and any(name == "setProgress" for name, _ in self.shown)

    def __getattr__(self, name: str) -> Any:
        return lambda said: self.shown.append((name, said))


def script(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)
    return path


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home, and nothing of rsseg on PATH."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    return tmp_path


@pytest.mark.parametrize("place", ["chosen", "on PATH", "in ~/.local/bin", "of uv"])
def test_the_program_is_found(home: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    folder = home / ".local" / "bin" if place == "in ~/.local/bin" else home / "tools"
    rsseg = script(folder / "rsseg")
    if place == "on PATH":
        monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    if place == "of uv":
        script(home / ".local" / "bin" / "uv", f'[ "$*" = "tool dir --bin" ] && echo {folder}')
    assert program.find_program("~/tools/rsseg" if place == "chosen" else "") == str(rsseg)


@pytest.mark.parametrize("path", ["", "/nowhere/rsseg"])
def test_a_program_that_is_absent_says_how_to_install_it(home: Path, path: str) -> None:
    with pytest.raises(program.ProgramError, match=r"uv tool install \."):
        program.find_program(path)


def test_windows_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "win32")
    with pytest.raises(program.ProgramError, match="not on Windows"):
        program.find_program()


def test_lines_are_shown_as_what_they_are(tmp_path: Path) -> None:
    rsseg = script(
        tmp_path / "rsseg",
        """echo '{"event": "progress", "stage": "map", "done": 1, "total": 4}' >&2""",
        """echo '{"event": "progress", "stage": "map", "done": 2, "total": 4}' >&2""",
        """echo '{"event": "log", "level": "warning", "message": "odd bands"}' >&2""",
        "echo 'of a library' >&2",
        'echo "$*"',
    )
    feedback = Feedback()
    assert program.run(str(rsseg), ["predict", "a b; ls"], feedback) == "--progress json predict a b; ls\n"
    assert feedback.shown[0] == ("pushCommandInfo", f"{rsseg} --progress json predict 'a b; ls'")
    assert feedback.shown[1:] == [
        ("setProgressText", "map ..."), ("setProgress", 25), ("setProgress", 50),
        ("pushWarning", "odd bands"), ("pushConsoleInfo", "of a library"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            """echo '{"event": "error", "exit_code": 1, "message": "no such model"}' >&2; exit 1""",
            "no such model",
        ),
        ("echo 'ModuleNotFoundError: rsseg_cli' >&2; exit 1", "ModuleNotFoundError: rsseg_cli"),
        ("exit 7", "ended with exit code 7"),
        ("kill -9 $$", "was killed by signal 9"),
    ],
)
def test_a_failed_run_says_why(tmp_path: Path, line: str, words: str) -> None:
    with pytest.raises(program.ProgramError, match=words):
        program.run(str(script(tmp_path / "rsseg", line)), [], Feedback())


@pytest.mark.parametrize("ignored", ["", "INT", "INT TERM"])
def test_a_stubborn_program_is_killed(tmp_path: Path, ignored: str) -> None:
    progress = """echo '{"event": "progress", "stage": "map", "done": 1, "total": 4}' >&2"""
    ignore = f"trap '' {ignored}" if ignored else ":"
    rsseg = script(tmp_path / "rsseg", f"echo $$ > {tmp_path}/id", ignore, progress, "exec sleep 600")
    signals = ((0, "SIGINT"), (0.2, "SIGTERM"), (0.4, "SIGKILL"))
    with pytest.raises(program.ProgramError):
        program.run(str(rsseg), [], Feedback(cancels=True), signals)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "id").read_text()), 0)
