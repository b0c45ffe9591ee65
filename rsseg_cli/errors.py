"""What a user can cause: each error's message says where, what was found, what is needed, what to do."""


class RssegError(Exception):
    """An error that a user can mend; the command line prints it in one line and exits with `exit_code`."""

    exit_code = 1


class UsageError(RssegError):
    """Options that contradict each other or lie outside their range."""

    exit_code = 2


class SceneError(RssegError):
    """A scene cannot be read, or does not fit the model."""


class ModelError(RssegError):
    """A model file cannot be read, trusted or run."""


class OutputError(RssegError):
    """An output exists already or cannot be written."""


class DataError(RssegError):
    """Training or evaluation data are incomplete or carry unknown values."""


def one_line(text: str) -> str:
    """A message without line breaks, and with control characters spelled out: names of files, and what
    libraries say of a file, may hold any, those that move a terminal's cursor among them.
    """
    words = " ".join(text.split())
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in words)


class TilingError(RssegError):
    """Tiles and scene do not fit each other."""
