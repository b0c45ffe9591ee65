"""STAC's core schemas, which pystac carries, so that Items are validated without a network."""

from __future__ import annotations

from typing import Any

from jsonschema import Draft7Validator
from pystac.validation.local_validator import get_local_schema_cache
from referencing import Registry, Resource

ITEM = "https://schemas.stacspec.org/v1.1.0/item-spec/json-schema/item.json"


def check_item(item: dict[str, Any]) -> None:
    """Validate an Item against the core schemas of STAC 1.1 and GeoJSON; extensions are checked by name."""
    schemas = get_local_schema_cache()
    registry = Registry().with_resources(
        (key, Resource.from_contents(value)) for key, value in schemas.items()
    )
    problems = [
        error.message for error in Draft7Validator(schemas[ITEM], registry=registry).iter_errors(item)
    ]
    assert not problems
    used = {key.split(":")[0] for key in item["properties"] if ":" in key}
    for asset in item["assets"].values():
        used |= {key.split(":")[0] for key in asset if ":" in key}
    short = {"proj": "projection"}
    declared = {uri.split("/")[3] for uri in item["stac_extensions"]}
    assert {short.get(prefix, prefix) for prefix in used} <= declared
