"""What a user can cause: each error's message says where, what was found, what is needed, what to do."""

import re
from urllib.parse import unquote


def redact(text: str) -> str:
    """`text` without passwords and query strings, which may be signatures, in its addresses.

    GDAL shortens addresses to their last part in some messages, so that a query is known by its form alone.
    """
    text = re.sub(r"(/vsi\w+\?)\S*?url=([^&\s]*)\S*", lambda found: f"{found[1]}...{unquote(found[2])}", text)
    text = re.sub(r"([A-Za-z][\w+.-]+:/+)[^/?\s]*@", r"\1", text)
    return re.sub(r"(?<=[^\s'\"])\?(?=[\w.%~+-]+=)\S*?(?=['\"]?[.,;:)]*(\s|$))", "?...", text)


def one_line(text: str) -> str:
    """A message without line breaks, and with control characters spelled out: names of files, and what
    libraries say of a file, may hold any, those that move a terminal's cursor among them.
    """
    words = " ".join(text.split())
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in words)


class RssegError(Exception):
    """An error that a user can mend; the command line prints it in one line and exits with `exit_code`.

    Its message is one line without secrets, wherever it is shown or stored.
    """

    exit_code = 1

    def __init__(self, message: object = "") -> None:
        super().__init__(one_line(redact(str(message))))


class UsageError(RssegError):
    """Options that contradict each other or lie outside their range."""

    exit_code = 2


class OutsideError(UsageError):
    """A scene has no part in the area that is asked for; of many scenes it is left out."""


class SceneError(RssegError):
    """A scene cannot be read, or does not fit the model."""


class ModelError(RssegError):
    """A model file cannot be read, trusted or run."""


class OutputError(RssegError):
    """An output exists already or cannot be written."""


class DataError(RssegError):
    """Training or evaluation data are incomplete or carry unknown values."""


class TilingError(RssegError):
    """Tiles and scene do not fit each other."""
