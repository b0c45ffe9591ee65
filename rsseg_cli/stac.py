"""STAC ItemCollections: which assets are scenes."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from rsseg_cli.errors import DataError, UsageError

MAX_BYTES = 512 * 2**20
DEFAULT_ROLES = ("data", "visual")  # looked for, in this order, where no asset is asked for
SHOWN = 8  # names in a message


@dataclass(frozen=True, kw_only=True)
class Asset:
    """An item's asset.

    Attributes:
        href: path or address for GDAL.
        name: of its outputs: the item's id.
    """

    href: str
    name: str


def read_items(path: Path, asset: str = "") -> Iterator[Asset]:
    """The asset of each item of a local STAC ItemCollection, or of a single Item.

    Args:
        asset: name or role of the asset; "" takes the only one that has the role "data", else "visual", else
            the only asset.

    Raises:
        DataError: it cannot be read or is none.
        UsageError: an item has no such asset, or several.
    """
    for item in _features(path):
        if not isinstance(item, dict) or not isinstance(item.get("assets"), dict):
            raise DataError(f"{path}: a feature without assets; needs a STAC ItemCollection")
        identifier = item.get("id")
        if not isinstance(identifier, str) or not identifier:
            raise DataError(f"{path}: an item without id; needs a STAC ItemCollection")
        where = f"{path}: item {identifier[:80]!r}"
        chosen = _choose(item["assets"], asset, where)
        href = item["assets"][chosen].get("href")
        place = _place(href, path) if isinstance(href, str) else ""
        if not href or not place or "\0" in place:
            raise DataError(f"{where}: its asset {chosen!r:.80} has no href")
        yield Asset(href=place, name=re.sub(r"[^\w.\-+ ]", "_", identifier)[:200])


def _features(path: Path) -> list[Any]:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path}: {path.stat().st_size} bytes; at most {MAX_BYTES} are read")
        found = json.loads(path.read_bytes())
    except OSError as err:
        raise DataError(f"{path}: cannot be read ({err.strerror})") from err
    except (ValueError, RecursionError) as err:
        raise DataError(f"{path}: is not JSON ({err})") from err
    kind = found.get("type") if isinstance(found, dict) else None
    if kind == "Feature":
        return [found]
    if kind != "FeatureCollection" or not isinstance(found.get("features"), list):
        advice = (
            "; save the items of a search as an ItemCollection" if kind in ("Catalog", "Collection") else ""
        )
        raise DataError(f"{path}: type {kind!r:.40}; needs a STAC ItemCollection (FeatureCollection){advice}")
    if not found["features"]:
        raise DataError(f"{path}: holds no items")
    return list(found["features"])


def _choose(assets: Mapping[str, Any], asked: str, where: str) -> str:
    """Name of the asset that is asked for, or of the one that is meant."""
    roles = {name: _roles(value) for name, value in assets.items() if isinstance(value, dict)}
    if asked in roles:
        return asked
    for role in (asked,) if asked else DEFAULT_ROLES:
        having = [name for name, own in roles.items() if role in own]
        if len(having) == 1:
            return having[0]
        if having:
            raise UsageError(f"{where}: {_names(having)} have the role {role!r}; pass --asset NAME")
    if not asked and len(roles) == 1:
        return next(iter(roles))
    missing = f"no asset of name or role {asked!r}" if asked else "which asset is the scene is not told"
    raise UsageError(f"{where}: {missing}; it has {_names(roles) or 'none'}. Pass --asset NAME")


def _roles(asset: Mapping[str, Any]) -> list[Any]:
    roles = asset.get("roles")
    return roles if isinstance(roles, list) else []


def _names(names: Any) -> str:
    listed = [repr(name)[:60] for name in names]
    more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    return ", ".join(listed[:SHOWN]) + more


def _place(href: str, path: Path) -> str:
    """A relative href is meant from the collection's folder, and may write spaces as %20."""
    if href.startswith("file://"):
        return unquote(urlsplit(href).path)
    if "://" in href or href.startswith("/"):
        return href
    beside = str(path.parent / href)
    return beside if os.path.exists(beside) else str(path.parent / unquote(href))
