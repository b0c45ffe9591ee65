"""How a batch maps its scenes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rsseg_cli.config import PredictConfig, RefineConfig, VectorConfig, option
from rsseg_cli.errors import UsageError
from rsseg_cli.files import VECTOR_ENDINGS, address_of

MANIFEST = "manifest.jsonl"  # in the folder of the outputs


@dataclass(frozen=True, kw_only=True)
class BatchSettings:
    """How the scenes of a batch are mapped, and where to.

    Attributes:
        layers: further outputs, kind -> ending of their names after the map's.
        vector: extension of the polygon files, such as "gpkg"; "" for none.
        stac: folder of the STAC Items, one for each map; None for none.
    """

    folder: Path
    model: str
    layers: Mapping[str, str] = field(default_factory=dict)
    vector: str = ""
    stac: Path | None = None
    config: PredictConfig = field(default_factory=PredictConfig)
    vector_config: VectorConfig = field(default_factory=VectorConfig)
    refine: RefineConfig | None = None
    # fmt: off
    suffix: str | None = option(
        None, "Ending of the maps' names after the scenes'. Default: _MODEL.", metavar="TEXT"
    )
    manifest: Path | None = option(
        None,
        "Record of what was done for each scene, one line of JSON each. Default: OUT_DIR/manifest.jsonl.",
        metavar="FILE.jsonl",
    )
    resume: bool = option(
        False,
        "Resume a stopped run: a scene from its last finished rows; of several scenes, those that the "
        "manifest does not list as done, or that have changed since.",
    )
    skip_existing: bool = option(False, "Skip scenes whose outputs all exist.")
    keep_tree: bool = option(False, "Arrange outputs in the same folders as their scenes.")
    mosaic: bool = option(
        False,
        "Map adjacent sheets as one scene, so that their borders show no seam; rasters are written sheet by "
        "sheet, polygons and picture for the whole.",
    )
    # fmt: on

    def __post_init__(self) -> None:
        for name, text in {"suffix": self.suffix or "", **self.layers}.items():
            if any(sign in text for sign in "/\\\0") or text.lower().endswith(
                (".tif", ".tiff", ".png", ".html")
            ):
                raise UsageError(
                    f"--{name} {text}: with many scenes, pass a suffix for the outputs' names, as _{name}, "
                    "without folder and .tif"
                )
        if self.vector and f".{self.vector.lower()}" not in VECTOR_ENDINGS:
            raise UsageError(
                f"--vector {self.vector}: with many scenes, pass the format of the polygons beside each map: "
                f"{', '.join(ending[1:] for ending in VECTOR_ENDINGS)}"
            )
        if self.resume and self.skip_existing:
            raise UsageError(
                "--resume and --skip-existing exclude each other: the manifest decides, or the files do"
            )
        if address_of(self.manifest_path):
            raise UsageError(
                f"-o {address_of(self.folder)}: no manifest can be kept in an object store, where nothing is "
                "appended; pass --manifest FILE.jsonl"
            )
        if self.mosaic and address_of(self.folder):
            raise UsageError("--mosaic writes sheets to a folder of this machine; copy them from there")
        if self.config.bbox is not None and self.mosaic:
            raise UsageError("--bbox does not work with --mosaic; pass --aoi FILE")
        if "uncertainty" in self.layers and (self.refine is None or self.refine.ensemble == 1):
            needed = "--refine" if self.refine is None else "--ensemble 2 or more"
            raise UsageError(f"--uncertainty is the disagreement of a refiner's samples; needs {needed}")

    @property
    def manifest_path(self) -> Path:
        return self.manifest or self.folder / MANIFEST
