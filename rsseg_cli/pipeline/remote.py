"""Outputs in object stores: made in a folder of this machine, and uploaded whole once all are complete."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from rsseg_cli import files
from rsseg_cli.errors import OutputError
from rsseg_cli.pipeline.result import PredictResult
from rsseg_cli.raster import gdal

Finish = Callable[[Callable[[], PredictResult]], Any]
_log = logging.getLogger(__name__)


def with_uploads(
    paths: Mapping[str, Path],
    make: Callable[[dict[str, Path], Finish], Any],
    finish: Finish,
    *,
    overwrite: bool,
    resume: bool,
) -> Any:
    """Make outputs by `make`, those with an address in a folder of their own, and upload these by `finish`.

    Companions go first, the map last: where it is, everything is. If an upload fails, the files are kept for
    the same call with `resume`, which uploads them again.
    """
    addresses = {kind: address for kind, path in paths.items() if (address := files.address_of(path))}
    if not addresses:
        return make(dict(paths), finish)
    staging = folder_of(addresses)
    existing = [address for address in addresses.values() if gdal.size_of(address) is not None]
    if existing and not overwrite and not (resume and staging.is_dir()):
        raise OutputError(f"{existing[0]}: exists. Pass --overwrite to replace it, or choose another output.")
    if not resume:
        shutil.rmtree(staging, ignore_errors=True)
    local = dict(paths)
    for kind, address in addresses.items():
        parent, _, name = address.rpartition("/")
        local[kind] = staging / _tag(parent) / name
        _make(local[kind].parent)
    try:
        return make(local, lambda rest: finish(lambda: _upload(rest(), local, addresses, staging)))
    except BaseException:
        _remove_empty(staging)
        raise


def _upload(
    result: PredictResult, local: Mapping[str, Path], addresses: Mapping[str, str], staging: Path
) -> PredictResult:
    """Upload all complete outputs, and what lies beside them; return the result with their addresses."""
    if "stac" in local:
        _readdress(local["stac"], {**local, **addresses})
    folders = {local[kind].parent: address.rpartition("/")[0] for kind, address in addresses.items()}
    made = [file for folder in folders for file in sorted(folder.iterdir()) if file.name[0] != "."]
    made.sort(key=lambda file: file == local["labels"])
    try:
        for file in made:
            gdal.upload(file, f"{folders[file.parent]}/{file.name}")
    except OutputError as err:
        err.add_note(f"all outputs are kept in {staging}; run the same command with --resume to upload them")
        raise
    shutil.rmtree(staging, ignore_errors=True)
    _log.info("%d files uploaded to %s", len(made), ", ".join(folders.values()))
    shown: dict[str, Any] = {**result.paths, **addresses}
    return replace(result, paths=shown)


def _readdress(item: Path, places: Mapping[str, Path | str]) -> None:
    """Let an Item name its files where they are going to lie; it was written for the folder it is in."""
    content = json.loads(item.read_bytes())
    for kind, asset in content["assets"].items():
        asset["href"] = str(places[kind] if isinstance(places[kind], str) else Path(places[kind]).absolute())
    for link in content["links"]:
        if "://" not in link["href"] and not link["href"].startswith("/vsi"):
            link["href"] = os.path.normpath(item.parent / link["href"])
    with files.write_atomic(item) as file:
        file.write_text(json.dumps(content, indent=1), encoding="utf-8")


def _remove_empty(folder: Path) -> None:
    """Remove folders without files, the deepest first."""
    for parent, _, _ in os.walk(folder, topdown=False):
        with suppress(OSError):
            os.rmdir(parent)


def folder_of(addresses: Mapping[str, str]) -> Path:
    """Return the folder in which outputs are made; the same for the same addresses."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "rsseg" / "uploads" / _tag("\n".join(addresses.values()))


def _tag(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as err:
        raise OutputError(f"{folder}: outputs that are to be uploaded cannot be made there ({err})") from err
