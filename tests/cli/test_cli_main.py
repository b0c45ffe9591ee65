"""The program's frame: help, version, errors as one line, exit codes, and a start without torch."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.main import get_command
from typer.testing import CliRunner

from rsseg_cli import __version__
from rsseg_cli.errors import ModelError, RssegError, UsageError

program = import_module("rsseg_cli.cli.main")  # the name in the face is the function
ROOT = Path(__file__).resolve().parents[2]
SMALLER = "Pass a smaller --tile-size or --batch-size, or a part of the scene by --bbox"
HEAVY = ("torch", "numpy", "rasterio", "geopandas", "timm", "lightning", "PIL", "scipy")


def rsseg(*args: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rsseg_cli", *args]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, **options)


def python(code: str) -> subprocess.CompletedProcess[str]:
    """A program that is given as text."""
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)


def commands(command: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command with its words, sub-commands included."""
    command = command or get_command(program.app)
    if not hasattr(command, "commands"):
        yield path, command
        return
    for name, child in command.commands.items():
        yield from commands(child, (*path, name))


def failing(error: BaseException) -> typer.Typer:
    """A program with the frame's group whose one command raises."""
    app = typer.Typer(cls=program._Group, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.callback()(program._start)

    @app.command()
    def fail() -> None:
        raise error

    return app


def test_help_and_version() -> None:
    shown = rsseg("--help")
    assert shown.returncode == 0
    for name in ("predict", "train", "models", "demo-scene", "Example: rsseg predict scene.tif"):
        assert name in shown.stdout
    assert re.fullmatch(
        rf"rsseg {re.escape(__version__)}( \([0-9a-f]{{12}}\+?\))?\n", rsseg("--version").stdout
    )


def test_help_is_quick() -> None:
    """In processor time, and beside the import of the library of its commands: 0.2 s and 0.1 s where half a
    second is the promise."""

    def seconds(*command: str) -> float:
        before = os.times()
        subprocess.run(command, capture_output=True, check=True)
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    program, library = (
        (sys.executable, "-m", "rsseg_cli", "--help"),
        (sys.executable, "-c", "import typer, rich"),
    )
    pairs = [(seconds(*program), seconds(*library)) for _ in range(5)]
    assert min(took for took, _ in pairs) < 3 * min(took for _, took in pairs)


@pytest.mark.parametrize("path", [path for path, _ in commands()], ids=" ".join)
def test_every_command_has_help_with_an_example(path: tuple[str, ...]) -> None:
    shown = CliRunner().invoke(program.app, [*path, "--help"])
    assert shown.exit_code == 0
    assert "Example:" in shown.output
    assert f"rsseg {' '.join(path)}" in " ".join(shown.output.split("Example:")[1].split())


@pytest.mark.parametrize("args", [["--help"], ["--version"], *[[*path, "--help"] for path, _ in commands()]])
def test_help_loads_nothing_heavy(args: list[str]) -> None:
    code = (
        f"import sys; sys.argv = ['rsseg', *{args!r}]\n"
        "from rsseg_cli.cli import main\n"
        "try: main()\n"
        f"finally: assert not set({HEAVY!r}) & set(sys.modules), set({HEAVY!r}) & set(sys.modules)"
    )
    result = python(code)
    assert result.returncode == 0, result.stderr


def test_a_command_loads_no_other() -> None:
    code = (
        "import sys; sys.argv = ['rsseg', 'vectorize', '--help']\n"
        "from rsseg_cli.cli import main\n"
        "try: main()\n"
        "finally: assert not {'rsseg_cli.cli.train', 'rsseg_cli.cli.predict'} & set(sys.modules)"
    )
    result = python(code)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (RssegError("a.tif: what and why"), 1, "rsseg: error: a.tif: what and why\n"),
        (ModelError("m"), 1, "rsseg: error: m\n"),
        (UsageError("u"), 2, "rsseg: error: u\n"),
        (KeyboardInterrupt(), 130, "rsseg: interrupted\n"),
        (MemoryError("2 GiB"), 1, f"rsseg: error: out of memory (2 GiB). {SMALLER}\n"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. GPU 0 has a total ..."),
            1,
            f"rsseg: error: out of memory (CUDA out of memory. Tried to allocate 2 GiB). {SMALLER}\n",
        ),
    ],
)
def test_errors_become_one_line_and_a_code(error: BaseException, code: int, line: str) -> None:
    result = CliRunner().invoke(failing(error), ["fail"])
    assert (result.exit_code, result.stdout, result.stderr) == (code, "", line)


@pytest.mark.parametrize("error", [ZeroDivisionError("slip"), RuntimeError("shapes differ")])
def test_faults_of_the_program_keep_their_trace(error: Exception) -> None:
    assert CliRunner().invoke(failing(error), ["fail"]).exception is error


@pytest.mark.parametrize("args", [["nosuch"], ["models", "nosuch"], ["--nosuch"], ["models", "show"]])
def test_usage_errors_exit_2(args: list[str]) -> None:
    result = rsseg(*args)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("Usage: rsseg")


def test_errors_of_subcommands_pass_the_same_place() -> None:
    result = rsseg("models", "show", "nosuch")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("rsseg: error: model 'nosuch'")
    assert result.stderr.count("\n") == 1


def test_a_closed_pipe_ends_quietly() -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as closed:
        result = subprocess.run(
            [sys.executable, "-m", "rsseg_cli", "models", "list"],
            cwd=ROOT, stdout=closed, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert result.stderr == ""
    assert result.returncode == 1


@pytest.mark.parametrize("has_thread", [False, True])
@pytest.mark.parametrize(("args", "code"), [(["--version"], 0), (["models", "show", "nosuch"], 1)])
def test_exit_skips_only_the_teardown_of_libraries(args: list[str], code: int, has_thread: bool) -> None:
    """Exit handlers of libraries run; with a thread at work the interpreter ends as usual."""
    script = (
        f"import atexit, os, sys, threading, types; sys.argv = ['rsseg', *{args!r}]\n"
        "sys.modules['numpy'] = types.ModuleType('numpy')\n"
        "class Torn:\n"
        "    def __del__(self, write=os.write): write(1, b'torn down')\n"
        "torn = Torn()\n"
        "from importlib import import_module\n"
        "program = import_module('rsseg_cli.cli.main')\n"
        "run = program.app\n"
        "def app(**options):\n"
        "    atexit.register(lambda: print('cleaned', flush=True))\n"
        f"    if {has_thread}: threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
        "    run(**options)\n"
        "program.app = app\n"
        "program.main()"
    )
    result = python(script)
    assert result.returncode == code
    assert result.stdout.endswith("cleaned\ntorn down" if has_thread else "cleaned\n")


@pytest.fixture
def started() -> Iterator[None]:
    """The command line's logging, taken down again after the test."""
    logger = logging.getLogger("rsseg_cli")
    before = logger.handlers[:], logger.level
    program._start(False)
    yield
    logger.handlers[:], level = before
    logger.setLevel(level)


@pytest.mark.parametrize(
    ("write", "line"),
    [
        (logging.Logger.info, "rsseg: read 3 tiles\n"),
        (logging.Logger.warning, "rsseg: warning: read 3 tiles\n"),
        (logging.Logger.debug, ""),
    ],
)
@pytest.mark.usefixtures("started")
def test_log_goes_to_stderr(
    write: Callable[..., None], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    program._start(False)  # twice, as in tests and notebooks: still one line a message
    write(logging.getLogger("rsseg_cli.pipeline.run"), "read %d tiles", 3)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", line)
