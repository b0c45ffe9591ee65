"""The `rsseg` program: its commands, and the one place where errors become messages and exit codes."""

from __future__ import annotations

import atexit
import errno
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

from rsseg_cli._version import __version__
from rsseg_cli.errors import RssegError, one_line, redact

FAILED = 1
INTERRUPTED = 130  # 128 + SIGINT, as shells count

COMMANDS = {  # where each one lies, in the order in which help lists them
    "predict": "predict:predict_command",
    "refine": "refine:refine_command",
    "score": "score:score_command",
    "eval": "eval:eval_command",
    "vectorize": "vectorize:vectorize_command",
    "demo": "demo:demo_command",
    "demo-scene": "demo:demo_scene",
    "train": "train:app",
    "models": "models:app",
}
EPILOG = "`rsseg COMMAND --help` shows a command's options with units, defaults and an example."


class _Commands(UserDict[str, Any]):
    """Commands by name; each is loaded once it is asked for, as their options take time to build."""

    def __getitem__(self, name: str) -> Any:
        if isinstance(self.data[name], str):
            self.data[name] = _load(name, self.data[name])
        return self.data[name]


def _load(name: str, place: str) -> Any:
    """The command at a place, MODULE:ATTRIBUTE."""
    module, _, attribute = place.partition(":")
    found = getattr(import_module(f"rsseg_cli.cli.{module}"), attribute)
    if not isinstance(found, typer.Typer):
        function, found = found, typer.Typer(add_completion=False, rich_markup_mode=None)
        found.command(name)(function)
    return typer.main.get_command(found)


class _Group(TyperGroup):
    """Turns the project's errors into a line on stderr and an exit code; commands run inside `invoke`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.commands = _Commands({**COMMANDS, **self.commands})

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: Any) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()  # a closed pipe shows here, where Typer ends quietly, not at interpreter exit
            return result
        except RssegError as err:
            raise _exit(_told(str(err), err), err.exit_code) from err
        except MemoryError as err:
            advice = "Pass a smaller --tile-size or --batch-size, or a part of the scene by --bbox"
            raise _exit(_told(f"out of memory ({err}). {advice}", err), FAILED) from err
        except OSError as err:  # a path or a disk that fails where no check foresaw it
            if err.errno == errno.EPIPE:  # who reads stdout has left, which Typer ends quietly
                raise
            raise _exit(_told(str(err), err), FAILED) from err
        except KeyboardInterrupt as err:
            typer.echo(f"rsseg: {_told('interrupted', err)}", err=True)
            raise typer.Exit(INTERRUPTED) from err


def _told(message: str, err: BaseException) -> str:
    """A message, then what was noted about the error on its way, as how to go on."""
    return "; ".join([message, *getattr(err, "__notes__", ())])


def _exit(message: str, code: int) -> typer.Exit:
    """The exit that a message on stderr announces."""
    typer.echo(f"rsseg: error: {one_line(redact(message))}", err=True)
    return typer.Exit(code)


class _LogHandler(logging.Handler):
    """`rsseg: MESSAGE` on stderr, with the level's name from warning upwards."""

    def emit(self, record: logging.LogRecord) -> None:
        level = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        line = f"rsseg: {level}{one_line(redact(record.getMessage()))}"
        bars = sys.modules.get("tqdm")
        if bars is None:
            typer.echo(line, err=True)
        else:  # above the bars, not into one
            bars.tqdm.write(line, file=sys.stderr)


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
        typer.echo(f"rsseg {__version__}")
        raise typer.Exit


@app.callback()
def _start(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    logger = logging.getLogger("rsseg_cli")
    logger.handlers[:] = [_LogHandler()]
    logger.setLevel(logging.INFO)


def main() -> None:
    """Run the command line."""
    sys.unraisablehook = _pass_over
    # Read when torch loads: its threads sleep while they wait for one another. On cores that other programs
    # keep busy, spinning threads use up the time of the one they wait for.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # cleans up and exits like an interrupt
    try:
        app(prog_name="rsseg")
    except SystemExit as end:
        _leave(end)
        raise


def _pass_over(unraisable: Any) -> None:
    """No traceback of rasterio's where it cannot log a message of GDAL that is no UTF-8."""
    if "rasterio" not in str(unraisable.object):
        sys.__unraisablehook__(unraisable)


def _leave(end: SystemExit) -> None:
    """End a process that did work without the clean-up of its libraries: that of torch takes 100 MB, that of
    those for rasters a quarter of a second."""
    working = [thread for thread in threading.enumerate() if not thread.daemon]
    if "numpy" not in sys.modules or len(working) > 1:
        return
    code = end.code if isinstance(end.code, int) else 0 if end.code is None else None
    if code is None:  # a message that Python prints
        return
    logging.shutdown()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):  # a closed pipe
        return
    atexit._run_exitfuncs()
    os._exit(code)
