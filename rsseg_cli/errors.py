"""Errors that a user can cause: the message says where, what is wrong, what is needed and what to do."""

import re
from urllib.parse import unquote


def redact(text: str) -> str:
    """Remove passwords and query strings, which may be signatures, from the addresses in `text`.

    GDAL shortens addresses to their last part in some messages, so only its form identifies a query.
    """
    text = re.sub(r"(/vsi\w+\?)\S*?url=([^&\s]*)\S*", lambda match: f"{match[1]}...{unquote(match[2])}", text)
    text = re.sub(r"([A-Za-z][\w+.-]+:/+)[^/?\s]*@", r"\1", text)
    return re.sub(r"(?<=[^\s'\"])\?(?=[\w.%~+-]+=)\S*?(?=['\"]?[.,;:)]*(\s|$))", "?...", text)


def one_line(text: str) -> str:
    """Remove line breaks and spell out control characters: names of files, and messages of libraries, may
    hold any, including those that move a terminal's cursor.
    """
    words = " ".join(text.split())
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in words)


class RssegError(Exception):
    """An error that a user can fix. The command line prints its message and exits with `exit_code`.

    The message is one line without secrets, wherever it is shown or stored.
    """

    exit_code = 1

    def __init__(self, message: object = "") -> None:
        super().__init__(one_line(redact(str(message))))


class UsageError(RssegError):
    """Options that contradict each other or lie outside their range."""

    exit_code = 2


class OutsideError(UsageError):
    """A scene does not overlap the requested area; a batch skips it."""


class SceneError(RssegError):
    """A scene cannot be read, or does not fit the model."""


class ModelError(RssegError):
    """A model file cannot be read, trusted or run."""


class OutputError(RssegError):
    """An output exists already or cannot be written."""


class DataError(RssegError):
    """Training or evaluation data are incomplete or have unknown values."""


class TilingError(RssegError):
    """Tiles and scene do not fit each other."""
