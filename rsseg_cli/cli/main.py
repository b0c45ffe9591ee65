"""The `rsseg` program: its commands, and how errors become messages and exit codes."""

from __future__ import annotations

import atexit
import errno
import io
import logging
import os
import signal
import sys
import threading
from collections import UserDict
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from rsseg_cli._version import __version__, source_commit
from rsseg_cli.cli import messages as msg
from rsseg_cli.errors import RssegError, one_line, redact
from rsseg_cli.system import allow_open_files, file_limit_advice

WrongUse: type[Exception] = typer.BadParameter.__bases__[0]  # which Typer does not name

COMMANDS = {  # module and name of each, in the order of the help
    "predict": "predict:predict_command",
    "refine": "refine:refine_command",
    "score": "score:score_command",
    "eval": "eval:eval_command",
    "vectorize": "vectorize:vectorize_command",
    "sample": "sample:sample_command",
    "assess": "assess:assess_command",
    "change": "change:change_command",
    "suggest": "suggest:suggest_command",
    "demo": "demo:demo_command",
    "demo-scene": "demo:demo_scene",
    "train": "train:app",
    "adapt": "adapt:adapt_command",
    "models": "models:app",
}
EPILOG = "`rsseg COMMAND --help` shows a command's options with units, defaults and an example."


class _Commands(UserDict[str, Any]):
    """Commands by name, loaded on first use: their options take time to build."""

    def __getitem__(self, name: str) -> Any:
        if isinstance(self.data[name], str):
            self.data[name] = _load(name, self.data[name])
        return self.data[name]


def _load(name: str, source: str) -> Any:
    module, _, attribute = source.partition(":")
    command = getattr(import_module(f"rsseg_cli.cli.{module}"), attribute)
    if not isinstance(command, typer.Typer):
        function, command = command, typer.Typer(add_completion=False, rich_markup_mode=None)
        command.command(name)(function)
    return typer.main.get_command(command)


class _Group(TyperGroup):
    """Turns errors of commands into a line on stderr and an exit code."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.commands = _Commands({**COMMANDS, **self.commands})

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: Any) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()  # a closed pipe shows here, where Typer ends quietly, not at interpreter exit
            msg.messages().end(0)
            return result
        except typer.Exit as err:
            msg.messages().end(err.exit_code)
            raise
        except WrongUse as err:
            if msg.messages().form != "json":
                raise
            raise _exit(err.format_message(), err, err.exit_code) from err  # type: ignore[attr-defined]
        except RssegError as err:
            raise _exit(str(err), err, err.exit_code) from err
        except (MemoryError, RuntimeError) as err:
            if not _is_out_of_memory(err):
                raise
            advice = "Pass a smaller --tile-size or --batch-size, or a part of the scene by --bbox"
            raise _exit(f"out of memory ({str(err).split('. GPU ')[0]}). {advice}", err) from err
        except OSError as err:  # a path or a disk that fails where no check foresaw it
            if err.errno == errno.EPIPE:  # the reader of stdout has left, which Typer ends quietly
                raise
            advice = f". {file_limit_advice()}" if err.errno == errno.EMFILE else ""
            raise _exit(f"{err}{advice}", err) from err
        except KeyboardInterrupt as err:
            raise _exit("interrupted", err, msg.INTERRUPTED) from err


def _is_out_of_memory(err: Exception) -> bool:
    """Recognise torch's errors by name and text, as torch may not be loaded."""
    names = {kind.__name__ for kind in type(err).__mro__}
    return bool(names & {"MemoryError", "OutOfMemoryError"}) or "can't allocate memory" in str(err)


def _with_notes(message: str, err: BaseException) -> str:
    """Add the notes that the error collected on its way, such as how to resume."""
    return "; ".join([message, *getattr(err, "__notes__", ())])


def _exit(message: str, err: BaseException, code: int = msg.FAILED) -> typer.Exit:
    msg.messages().end(code, one_line(redact(_with_notes(message, err))))
    return typer.Exit(code)


app = typer.Typer(
    cls=_Group,
    name="rsseg",
    help="Land-cover maps and polygons from large georeferenced scenes.\n\n"
    "Example: rsseg predict scene.tif -o map.tif --preview map.png",
    epilog=EPILOG,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        commit = source_commit()
        typer.echo(f"rsseg {__version__}" + (f" ({commit})" if commit else ""))
        raise typer.Exit


@app.callback()
def _start(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True),
    ] = False,
    progress: Annotated[
        msg.Form,
        typer.Option(
            help="Progress on stderr. bar: bars on a terminal, lines elsewhere. json: lines of JSON for "
            "programs, messages too; see docs/progress.md. off: none.",
        ),
    ] = "bar",
) -> None:
    msg.start(progress)


def main() -> None:
    _open_standard_streams()
    _use_utf8()
    if not _has_working_folder():
        msg.say("rsseg: error: the working folder does not exist any more; change to another one")
        raise SystemExit(msg.FAILED)
    allow_open_files()
    # Read when torch loads: its threads sleep while they wait for one another. On cores that other programs
    # keep busy, spinning threads use up the time of the one they wait for.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    sys.unraisablehook = _ignore_rasterio
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # cleans up and exits like an interrupt
    codes: list[int] = []
    atexit.register(_leave, codes)
    try:
        app(prog_name="rsseg")
    except SystemExit as end:
        code = 0 if end.code is None else end.code
        codes += [code] if isinstance(code, int) else []  # else a message, which Python prints
        raise


def _open_standard_streams() -> None:
    """Open closed standard streams as /dev/null: else the next files to be opened would take their place, and
    the messages of libraries."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files may hold any bytes


def _use_utf8() -> None:
    """Start again in Python's UTF-8 mode where file names would be ASCII: GDAL's are always UTF-8."""
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _has_working_folder() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return False
    return True


def _ignore_rasterio(unraisable: Any) -> None:
    """Skip the traceback of rasterio where it cannot log a message of GDAL that is not UTF-8."""
    if "rasterio" not in str(unraisable.object):
        sys.__unraisablehook__(unraisable)


def _leave(codes: list[int]) -> None:
    """End the process without tearing down its libraries, which takes torch 100 MB and a quarter of a second.

    Exit handlers that they registered have run. With another thread, which may be at work, the process ends
    as usual.
    """
    if not codes or "numpy" not in sys.modules or threading.active_count() > 1:
        return
    logging.shutdown()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):  # a closed pipe
        return
    os._exit(codes[0])
