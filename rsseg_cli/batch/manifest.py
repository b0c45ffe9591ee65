"""The manifest of a batch: one JSON line a scene, with its inputs, settings and status.

Lines are only appended, each in one write that is on disk before work continues: a killed batch loses at most
the line it was writing. The last line of a scene counts. A file beside the manifest reserves space for it;
on a full disk it shrinks, so that failures for lack of space can be recorded.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from rsseg_cli.errors import DataError, OutputError

MAX_LINE_BYTES = 64 * 2**20  # a mosaic of 100,000 sheets
RESERVE_BYTES = 2**20  # some 200 scenes that fail
RESERVE_STEP = 2**12  # by which it shrinks: what is given back may be taken by others
STATES = ("started", "done", "failed", "skipped")

Record = dict[str, Any]


class Manifest:
    """Appends records to a file; a context manager that closes it.

    The file is created if needed; an incomplete last line is removed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records = read_manifest(path) if path.exists() else {}
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
            os.ftruncate(self._file, _whole_bytes(path))
        except OSError as err:
            raise OutputError(f"{path}: the manifest cannot be written ({err.strerror})") from err
        self._reserve = path.with_name(f".{path.name}.reserve")
        try:
            self._reserve.write_bytes(os.urandom(RESERVE_BYTES))  # some disks store zeros as nothing
        except OSError:  # a disk that has no such room leaves all of it to the maps
            self._drop_reserve()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)
        self._drop_reserve()

    def add(self, record: Mapping[str, Any]) -> None:
        """Append a record and flush it to disk. On OutputError the file is unchanged."""
        stamped = {**record, "time": datetime.now(UTC).isoformat(timespec="seconds")}
        line = json.dumps(stamped, ensure_ascii=True).encode() + b"\n"
        while not self._append(line):
            pass
        self.records[stamped["input"]] = stamped

    def _append(self, line: bytes) -> bool:
        """Try to write a line; False if another try may find more space."""
        before = os.fstat(self._file).st_size
        try:
            if os.write(self._file, line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._file)
        except OSError as err:
            os.ftruncate(self._file, before)
            if err.errno in (errno.ENOSPC, errno.EDQUOT) and self._give_room(len(line)):
                return False
            raise OutputError(f"{self.path}: the manifest cannot be written ({err.strerror})") from err
        return True

    def _drop_reserve(self) -> None:
        with suppress(OSError):
            self._reserve.unlink(missing_ok=True)

    def _give_room(self, size: int) -> bool:
        """Shrink the reserve; False if it is empty."""
        with suppress(OSError):
            left = self._reserve.stat().st_size
            os.truncate(self._reserve, max(0, left - max(size, RESERVE_STEP)))
            return left > 0
        return False


def read_manifest(path: Path) -> dict[str, Record]:
    """Read the last record of each input; an incomplete last line is ignored."""
    records: dict[str, Record] = {}
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                if not line.endswith(b"\n"):
                    if len(line) > MAX_LINE_BYTES or line.strip(b"\0")[:1] not in (b"", b"{"):
                        raise _no_manifest(path, number)
                    break  # cut off while it was written
                record = _record(line, path, number)
                records[record["input"]] = record
    except OSError as err:
        raise DataError(f"{path}: the manifest cannot be read ({err.strerror})") from err
    return records


def _record(line: bytes, path: Path, number: int) -> Record:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as err:
        raise _no_manifest(path, number) from err
    if (
        not isinstance(found, dict)
        or not isinstance(found.get("input"), str)
        or found.get("status") not in STATES
        or not isinstance(found.get("outputs", {}), dict)
    ):
        raise _no_manifest(path, number)
    return found


def _no_manifest(path: Path, number: int) -> DataError:
    return DataError(
        f"{path}: line {number} is not a record of a batch; needs a manifest that rsseg wrote, or a new name"
    )


def _whole_bytes(path: Path) -> int:
    """Return the number of bytes up to the end of the last complete line."""
    size = path.stat().st_size
    with path.open("rb") as file:
        end = size
        while end > 0:
            start = max(0, end - 2**20)
            file.seek(start)
            found = file.read(end - start).rfind(b"\n")
            if found >= 0:
                return start + found + 1
            end = start
    return 0
