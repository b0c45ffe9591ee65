"""List the scenes that arguments name: paths, globs, folders, list files, STAC items."""

from __future__ import annotations

import codecs
import csv
import glob
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Annotated, Any
from urllib.parse import unquote, urlsplit

import msgspec

from rsseg_cli.errors import DataError, OutputError, UsageError
from rsseg_cli.files import write_atomic
from rsseg_cli.raster import SceneInfo, gdal, vrt

MAX_BYTES = 512 * 2**20
DEFAULT_ROLES = ("data", "visual")  # of the asset, in this order, without --asset
ASSETS = "--asset NAME, or NAME,NAME,NAME to join assets of one band each"
MAX_NAMED = 8  # names in a message
EXTENSIONS = (".tif", ".tiff", ".jp2", ".img", ".vrt")  # of scenes in a folder
MAX_SCENES = 1_000_000
MAX_LIST_BYTES = 256 * 2**20
MAGIC = "*?["
SEPARATORS = ";\t,"
COLUMNS = ("path", "file", "filename", "image", "scene", "location", "href", "url", "source")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class BatchScene:
    """A scene of a batch; `folder` is relative to the one that all scenes share."""

    path: str
    stem: str
    folder: str = ""


@dataclass(frozen=True, kw_only=True)
class _Listed:
    path: str
    stem: str
    root: str | None  # the scanned folder; None for a named scene


def list_scenes(
    arguments: Sequence[str], *, stdin: Iterable[bytes] = (), asset: str = "", target: Path | None = None
) -> list[BatchScene]:
    """List scenes in the order given; those of a folder or glob sorted by name.

    Args:
        arguments: each a path or URL, a glob, a folder (with its subfolders), a local STAC ItemCollection
            (.json, .geojson), `@FILE` for a list of such lines or a table with a column of them, or `-` for
            a list in `stdin`. A VRT given alone that joins whole files stands for those files; any other VRT
            is a scene.
    """
    found: list[_Listed] = []
    for argument in arguments:
        if argument == "-":
            lines = _lines(b"".join(stdin), "standard input")
        elif argument.startswith("@") and not os.path.exists(argument):
            lines = _lines(_read(Path(argument[1:])), argument[1:])
        else:
            lines = _index(argument) if len(arguments) == 1 else [argument]
        for line in lines:
            found += _expand(line, asset, target)
            if len(found) > MAX_SCENES:
                raise UsageError(
                    f"{argument}: more than {MAX_SCENES} scenes; split them into several batches"
                )
    if not found:
        raise UsageError(f"{' '.join(arguments)[:200]}: names no scene")
    return _with_folders(found)


def _index(argument: str) -> list[str]:
    """Return the sheets that a local VRT joins, or the argument itself."""
    if is_gdal_name(argument) or not argument.lower().endswith(".vrt") or not os.path.isfile(argument):
        return [argument]
    sheets = vrt.sheets_of(argument)
    if sheets:
        _log.info("%s: an index of %d sheets", argument, len(sheets))
    return sheets or [argument]


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_LIST_BYTES:
            raise DataError(
                f"{path}: {path.stat().st_size} bytes; a list of scenes has at most {MAX_LIST_BYTES}"
            )
        return path.read_bytes()
    except OSError as err:
        raise DataError(f"{path}: the list of scenes cannot be read ({err.strerror})") from err


def _lines(text: bytes, where: str) -> list[str]:
    """Split a list into paths: one a line, or NUL-separated as by `find -print0`; # starts a comment.

    Lines may be those of a table: cells by semicolons, tabs or commas, with or without a head. Blanks, quotes
    and separators are part of a path where such a file exists.
    """
    if text.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        text = text.decode("utf-16", "replace").encode()
    text = text.removeprefix(codecs.BOM_UTF8)
    if b"\0" in text:
        return [os.fsdecode(part) for part in text.split(b"\0") if part]
    lines = [os.fsdecode(line.removesuffix(b"\r")) for line in text.split(b"\n")]
    lines = [line for line in lines if line.strip() and not line.startswith("#")]
    long = next((line for line in lines if len(line) > 4096), None)
    if long is not None:
        raise DataError(f"{where}: a line of {len(long)} characters; needs a path or address a line")
    rows = [[line] if os.path.lexists(line) else _cells(line) for line in lines]
    names = [cell.lower() for cell in rows[0]] if rows else []
    column = next((names.index(name) for name in COLUMNS if name in names), None)
    if column is None or os.path.lexists(rows[0][column]):
        return [_path_of(line.strip(), cells) for line, cells in zip(lines, rows, strict=True)]
    short = next((number for number, cells in enumerate(rows, 1) if len(cells) <= column), None)
    if short is not None:
        raise DataError(f"{where}: row {short} has no cell {names[column]!r}")
    return [cells[column] for cells in rows[1:] if cells[column]]


def _cells(line: str) -> list[str]:
    """Return the cells of a line, without blanks and quotes around them."""
    separator = max(SEPARATORS, key=line.count)
    cells = next(csv.reader([line], delimiter=separator, skipinitialspace=True), [""])
    return [_unquoted(cell.strip()) for cell in cells]


def _unquoted(cell: str) -> str:
    return cell[1:-1] if len(cell) > 1 and cell[0] == cell[-1] and cell[0] in "'\"" else cell


def _path_of(line: str, cells: Sequence[str]) -> str:
    """Return the cell that is a path, or else the line; a URL may hold separators."""
    there = [cell for cell in cells if os.path.lexists(cell)]
    named = [cell for cell in cells[: 1 if is_gdal_name(line) else None] if cell.lower().endswith(EXTENSIONS)]
    return there[0] if there else named[0] if named and "?" not in line else line


def _expand(text: str, asset: str, target: Path | None) -> Iterator[_Listed]:
    """Yield the scenes of an argument or line; GDAL reports names that are no files."""
    if is_gdal_name(text) or gdal.is_folder_of_one(text):
        yield _Listed(path=text, stem=stem_of(text), root=None)
    elif os.path.isdir(text):
        yield from _scan(Path(text), target)
    elif not os.path.lexists(text) and any(sign in text for sign in MAGIC):
        paths = sorted(glob.glob(text, recursive=True))
        if not paths:
            raise UsageError(f"{text}: no file has such a name")
        for path in paths:
            yield from _expand(path, asset, target)
    elif text.lower().endswith((".json", ".geojson")):
        yield from read_items(Path(text), asset, target)
    elif text.lower().endswith((".csv", ".tsv", ".txt", ".lst")) and os.path.isfile(text):
        raise UsageError(f"{text}: is no raster; if it lists scenes, pass @{text}")
    else:
        yield _Listed(path=text, stem=stem_of(text), root=None)


def is_gdal_name(text: str) -> bool:
    """Whether a name is GDAL's and not the file system's: /vsizip/..., s3://..., NETCDF:"a.nc":red."""
    return text.startswith("/vsi") or "://" in text or gdal.is_description(text)


def stem_of(text: str) -> str:
    """Return a scene's name without folder and extension, after which its outputs are named."""
    if not is_gdal_name(text):
        return Path(text).stem
    if text.startswith("/vsi") or re.match(r"[\w+.-]+://", text):
        return PurePosixPath(text.partition("?")[0]).stem
    rest = text.partition(":")[2]
    file, _, part = rest[1:].partition('"') if rest.startswith('"') else rest.partition(":")
    return "_".join(filter(None, [Path(file).stem, re.sub(r"[^\w.-]+", "_", part).strip("_")]))


def _scan(folder: Path, target: Path | None) -> Iterator[_Listed]:
    """Yield the rasters below a folder, without hidden files and the batch's outputs."""
    if target is not None and target.exists() and os.path.samefile(folder, target):
        raise UsageError(
            f"{folder}: is also the output folder, and all its rasters would be mapped; choose another "
            "--output"
        )
    skipped = None if target is None else target.resolve()
    count = 0
    for parent, folders, files in os.walk(folder):
        below = [name for name in folders if name[0] != "." and Path(parent, name).resolve() != skipped]
        products = [name for name in below if gdal.is_folder_of_one(os.path.join(parent, name))]
        folders[:] = sorted(set(below) - set(products))
        rasters = [name for name in files if name[0] != "." and name.lower().endswith(EXTENSIONS)]
        for name in sorted(products) + sorted(rasters):
            count += 1
            yield _Listed(path=os.path.join(parent, name), stem=Path(name).stem, root=str(folder))
    if not count:
        raise UsageError(f"{folder}: holds no scene ({' '.join(EXTENSIONS)})")


def _with_folders(found: Sequence[_Listed]) -> list[BatchScene]:
    """Add each scene's folder below the scanned folder, or below the one that all named paths share."""
    local = [os.path.dirname(os.path.abspath(item.path)) for item in found if not is_gdal_name(item.path)]
    try:
        shared = os.path.commonpath(local) if local else ""
    except ValueError:  # several drives
        shared = ""
    scenes = []
    for item in found:
        scene = BatchScene(path=item.path, stem=item.stem)
        if is_gdal_name(item.path):
            remote = PurePosixPath(item.path.partition("?")[0].partition("://")[2] or item.path)
            parts = [part for part in remote.parent.parts if part not in ("/", "..", ".")]
            folder = os.path.join(*parts) if parts else ""
        else:
            root = item.root if item.root is not None else shared
            folder = os.path.relpath(os.path.dirname(os.path.abspath(item.path)), root or os.sep)
        scenes.append(replace(scene, folder="" if folder == "." else folder))
    return scenes


class Asset(msgspec.Struct):
    """A file of a STAC item: path or URL, and what it is for."""

    href: str = ""
    roles: Any = None
    bands: Any = None
    eo_bands: Any = msgspec.field(default=None, name="eo:bands")

    def has_role(self, role: str) -> bool:
        return isinstance(self.roles, list) and role in self.roles

    @property
    def colours(self) -> list[str]:
        """Common names of its bands, [] unless all have one."""
        bands = self.eo_bands or self.bands
        if not isinstance(bands, list) or not all(isinstance(band, dict) for band in bands):
            return []
        names = [band.get("eo:common_name") or band.get("common_name") for band in bands]
        return [str(name) for name in names] if all(names) else []


class Item(msgspec.Struct):
    """A scene of a STAC catalogue."""

    id: Annotated[str, msgspec.Meta(min_length=1)]
    assets: dict[str, Asset]


def read_items(path: Path, asset: str = "", folder: Path | None = None) -> Iterator[_Listed]:
    """Read the asset of each item of a local STAC ItemCollection or Item.

    Args:
        asset: name or role; "" takes the only asset of role "data", else "visual", else the only asset. Names
            with commas between are assets of one band each, joined by a VRT in `folder`.
    """
    document = _read_json(path)
    kind = document.get("type") if isinstance(document, dict) else None
    features = [document] if kind == "Feature" else isinstance(document, dict) and document.get("features")
    if kind not in ("Feature", "FeatureCollection") or not isinstance(features, list):
        advice = (
            "; save the items of a search as an ItemCollection" if kind in ("Catalog", "Collection") else ""
        )
        raise DataError(f"{path}: type {kind!r:.40}; needs a STAC ItemCollection (FeatureCollection){advice}")
    if not features:
        raise DataError(f"{path}: holds no items")
    try:
        items = msgspec.convert(features, list[Item])
    except msgspec.ValidationError as err:
        raise DataError(f"{path}: {err}; needs a STAC ItemCollection") from err
    for item in items:
        where = f"{path}: item {item.id[:80]!r}"
        stem = re.sub(r"[^\w.\-+ ]", "_", item.id)[:200]
        targets: dict[str, str] = {}
        for asked in asset.split(",") if "," in asset else [asset]:
            name = _choose(item.assets, asked.strip(), where)
            href = item.assets[name].href
            target = _resolve(href, path)
            if not href or not target or "\0" in target:
                raise DataError(f"{where}: its asset {name!r:.80} has no href")
            targets[target] = asked.strip()
        colours = item.assets[name].colours if len(targets) == 1 else []
        if len(targets) > 1 or colours[:3] not in ([], ["red", "green", "blue"]):
            target = _joined(targets, colours, (folder or Path()) / f"{stem}.vrt")
        yield _Listed(path=target, stem=stem, root=None)


def _joined(targets: Mapping[str, str], colours: Sequence[str], path: Path) -> str:
    """Write a VRT of files of one band, by name, or of one file by its bands' colours; return its path."""
    bands = []
    for target, name in targets.items():
        info = SceneInfo.of(target)
        names = colours if len(colours) == info.count else [name] * info.count
        bands += [(info, number, text) for number, text in enumerate(names, 1)]
    text = vrt.of_files(bands)
    try:
        if path.exists() and not path.read_bytes().startswith(b"<VRTDataset"):
            raise OutputError(f"{path}: exists, and is not a VRT of assets; choose another folder")
        if path.exists() and path.read_text(encoding="utf-8") == text:
            return str(path)  # a later run sees that nothing has changed
        path.parent.mkdir(exist_ok=True)
        with write_atomic(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as err:
        raise OutputError(f"{path}: cannot be written ({err.strerror})") from err
    return str(path)


def _read_json(path: Path) -> Any:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path}: {path.stat().st_size} bytes; at most {MAX_BYTES} are read")
        return json.loads(path.read_bytes())
    except OSError as err:
        raise DataError(f"{path}: cannot be read ({err.strerror})") from err
    except (ValueError, RecursionError) as err:
        raise DataError(f"{path}: is not JSON ({err})") from err


def _choose(assets: Mapping[str, Asset], asked: str, where: str) -> str:
    """Return the name of the requested asset, or of the default one."""
    if asked in assets:
        return asked
    coloured = [name for name, asset in assets.items() if asked and asset.colours == [asked]]
    if len(coloured) == 1:
        return coloured[0]
    for role in (asked,) if asked else DEFAULT_ROLES:
        having = [name for name, asset in assets.items() if asset.has_role(role)]
        if len(having) == 1:
            return having[0]
        if having:
            raise UsageError(f"{where}: {_names(having)} have the role {role!r}; pass {ASSETS}")
    if not asked and len(assets) == 1:
        return next(iter(assets))
    missing = f"no asset of name or role {asked!r}" if asked else "several assets could be the scene"
    raise UsageError(f"{where}: {missing}; it has {_names(assets) or 'none'}; pass {ASSETS}")


def _names(names: Iterable[str]) -> str:
    listed = [repr(name)[:60] for name in names]
    more = f" and {len(listed) - MAX_NAMED} more" if len(listed) > MAX_NAMED else ""
    return ", ".join(listed[:MAX_NAMED]) + more


def _resolve(href: str, path: Path) -> str:
    """Resolve an href from the collection's folder; it may write spaces as %20."""
    if href.startswith("file://"):
        return unquote(urlsplit(href).path)
    if "://" in href or href.startswith("/"):
        return href
    beside = str(path.parent / href)
    return beside if os.path.exists(beside) else str(path.parent / unquote(href))
