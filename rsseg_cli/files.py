"""Files that appear whole or not at all: targets are checked before work starts, replaced at its end."""

from __future__ import annotations

import errno
import glob
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from rsseg_cli.errors import OutputError

# Endings of files that programs read together with one, after its name and in place of its own ending.
BESIDE = {
    ".tif": (".ovr", ".msk", ".msk.ovr", ".aux.xml"),
    ".png": (".aux.xml",),
    ".gpkg": ("-wal", "-shm", "-journal", ".aux.xml"),
    ".shp": (".xml",),
}
INSTEAD = {
    ".shp": (
        ".shx", ".dbf", ".prj", ".cpg", ".qpj", ".cst", ".qix", ".sbn", ".sbx", ".fbn", ".fbx", ".ain",
        ".aih", ".ixs", ".mxs", ".idm", ".ind",
    ),
}  # fmt: skip
KINDS = {
    stat.S_IFDIR: "a folder; needs the name of a file",
    stat.S_IFIFO: "a pipe, which no file can replace",
    stat.S_IFSOCK: "a socket, which no file can replace",
    stat.S_IFCHR: "a device, which no file can replace",
    stat.S_IFBLK: "a device, which no file can replace",
}
VECTOR_ENDINGS = {
    ".gpkg": "GPKG",
    ".fgb": "FlatGeobuf",
    ".parquet": "GeoParquet",
    ".geoparquet": "GeoParquet",
    ".geojson": "GeoJSON",
    ".json": "GeoJSON",
    ".shp": "Shapefile",
}


def address_of(path: str | Path) -> str | None:
    """Return the address of a file in an object store, s3://BUCKET/NAME; None for a file of this machine.

    A `Path` of it has one slash for two.
    """
    match = re.fullmatch(r"(s3|gs|az):/{1,2}([^/].*)", str(path))
    return f"{match[1]}://{match[2]}" if match else None


def location_of(path: Path) -> str:
    """Return the absolute path of a file, or its address."""
    return address_of(path) or str(path.absolute())


def check_target(path: Path, *, overwrite: bool = False, inputs: Sequence[str | Path] = ()) -> None:
    """Refuse a target before work starts: an OutputError says why. No target is one of `inputs`."""
    path = Path(path)
    if address := address_of(path):
        raise OutputError(f"{address}: only rsseg predict writes to object stores; write a file, and copy it")
    for other in inputs:
        if _same_file(path, other):
            raise OutputError(f"{path}: is the input itself, or a part of it. Choose another output.")
    for file in (path, *companions(path)):
        check_regular(file)
    if not path.parent.is_dir():
        raise OutputError(f"{path}: its folder does not exist. Make {path.parent} first.")
    if path.exists() and not overwrite:
        raise OutputError(f"{path}: exists. Pass --overwrite to replace it, or choose another output.")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise OutputError(f"{path}: no permission to write in {path.absolute().parent}.")


def check_folder(path: Path, what: str) -> None:
    """Refuse a folder for `what` that cannot be made: an OutputError says why."""
    if path.exists() and not path.is_dir():
        raise OutputError(f"{path}: is a file; {what} needs a folder")
    if not path.absolute().parent.is_dir():
        raise OutputError(f"{path}: its folder {path.absolute().parent} does not exist")


def check_regular(path: Path) -> None:
    """Refuse a target that exists and is no regular file: to replace it would break what it is there for."""
    try:
        kind = stat.S_IFMT(os.lstat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, ValueError) as err:
        reason = getattr(err, "strerror", None) or err
        raise OutputError(f"{path}: cannot be written ({reason}). Choose another name.") from err
    if kind == stat.S_IFLNK:
        raise OutputError(
            f"{path}: is a link to {os.readlink(path)}; pass the file that it leads to, or another name."
        )
    if kind != stat.S_IFREG:
        raise OutputError(f"{path}: is {KINDS.get(kind, 'no file')}. Choose another name.")


def write_error(path: Path, err: OSError) -> OutputError:
    """Return the error for a file that cannot be written."""
    full = err.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return OutputError(f"{path.absolute()}: cannot be written ({err}).{' Is the disk full?' * full}")


def companions(path: Path) -> list[Path]:
    """List files that programs read together with a file of this name: its overviews, indices, logs."""
    kind = ".tif" if path.suffix.lower() == ".tiff" else path.suffix.lower()
    names = {f"{path.name}{ending}" for ending in BESIDE.get(kind, ())}
    names |= {f"{path.stem}{ending}" for ending in INSTEAD.get(kind, ())}
    names |= {name[: -len(ending)] + ending.upper() for name in names for ending in [Path(name).suffix]}
    files = [path.with_name(name) for name in sorted(names) if os.path.lexists(path.with_name(name))]
    if kind == ".shp":  # an index of each field
        files += sorted(path.parent.glob(f"{glob.escape(path.stem)}.*.[aA][tT][xX]"))
    return files


def read_limited(path: Path, limit: int) -> bytes:
    """Read a file that is not trusted; ValueError where it has more than `limit` bytes."""
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"is larger than {limit} bytes")
    return content


@contextmanager
def write_atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to, which then replaces `path`; after an error `path` is as before."""
    check_regular(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def replace_all(renames: Mapping[Path, Path], *, tag: str | None = None) -> None:
    """Give files their names, and remove other `companions` of these: all of it or, where a step fails, none.

    Args:
        renames: file -> its name; in order, so that where the last one is, all are.
        tag: in the names that old files have until the end; by default this process's number.
    """
    kept: dict[Path, Path] = {}  # existing file -> its name until the end
    given: dict[Path, Path] = {}
    leftovers = stale(renames.values())
    try:
        for path in (*renames.values(), *leftovers):
            check_regular(path)
            if path.is_file():
                kept[path] = _waiting_name(path, tag or str(os.getpid()))
                _keep(path, kept[path])
        for file, path in renames.items():
            os.replace(file, path)
            given[path] = file
        for path in leftovers:
            path.unlink(missing_ok=True)
        for folder in {path.parent for path in given}:
            sync(folder)
    except BaseException as err:
        for path, file in given.items():
            path.replace(file)
        for path, old in kept.items():
            if old.exists():
                old.replace(path)
        if isinstance(err, OSError):
            names = ", ".join(map(str, renames.values()))
            raise OutputError(f"{names}: cannot be written ({err}); earlier files were left") from err
        raise
    finally:
        for old in kept.values():
            old.unlink(missing_ok=True)


def stale(paths: Iterable[Path]) -> list[Path]:
    """List companions of files that are about to be replaced, but for those that are replaced themselves."""
    given = list(paths)
    return [file for path in given for file in companions(path) if file not in given]


def finish_replacing(
    renames: Sequence[tuple[Path, Path]], leftovers: Sequence[Path] = (), *, tag: str
) -> None:
    """Complete a `replace_all` that was killed; `leftovers` were `stale` when it began."""
    try:
        for file, path in renames:
            if file.exists():
                os.replace(file, path)
        for path in leftovers:
            path.unlink(missing_ok=True)
        for folder in {path.parent for _, path in renames}:
            sync(folder)
        for path in (*(path for _, path in renames), *leftovers):
            _waiting_name(path, tag).unlink(missing_ok=True)
    except OSError as err:
        names = ", ".join(str(path) for _, path in renames)
        raise OutputError(f"{names}: cannot be written ({err})") from err


def sync(path: Path) -> None:
    """Make the system put a file, or the names in a folder, on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _waiting_name(path: Path, tag: str) -> Path:
    return path.with_name(f".{path.name}.{tag}.old")


def _keep(path: Path, old: Path) -> None:
    """Give a file a second name; a file system without hard links moves it there."""
    old.unlink(missing_ok=True)
    try:
        old.hardlink_to(path)
    except OSError:
        path.replace(old)


def _same_file(path: Path, other: str | Path) -> bool:
    try:
        return path.exists() and os.path.samefile(path, other)
    except OSError:
        return False
