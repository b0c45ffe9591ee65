"""Options that say which labelled data: shared by `rsseg train` and `rsseg eval`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rsseg_cli.data import DataConfig

IMAGES, MASKS, DOMAINS, VAL_SHARE = "images/*", "masks/*", "urban,rural", 0.15

Dataset = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="Published data in --root: loveda, vaihingen, potsdam, inria, or torchgeo:ClassName for another "
        "segmentation data set of TorchGeo. Nothing is downloaded.",
    ),
]
Root = Annotated[Path | None, typer.Option(metavar="DIR", help="Folder that holds --dataset.")]
Domains = Annotated[str, typer.Option(metavar="A,B", help="Of loveda: urban, rural or both.")]
Bands = Annotated[
    str,
    typer.Option(
        metavar="A,B,C",
        help="Bands to use, by name, for example nir,red,green. Default: the data set's own; red,green,blue "
        "for potsdam and for your own data.",
    ),
]
Data = Annotated[
    list[Path] | None,
    typer.Option(metavar="FOLDER", help="Folder with images and labels, in pairs; repeatable."),
]
Images = Annotated[str, typer.Option(metavar="GLOB", help="Images inside --data.")]
Masks = Annotated[
    str,
    typer.Option(
        metavar="GLOB",
        help="Labels inside --data: rasters of class numbers (255 unlabelled) or colours, or polygons (GPKG, "
        "GeoJSON, Shapefile, FlatGeobuf), on any grid and CRS. A pair has the same text in place of the *; "
        "one vector file may serve all images.",
    ),
]
Scenes = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="LIST.csv",
        help="Columns image, labels, split (train, val, test) and, for polygons, classes_field; paths from "
        "the list's folder; repeatable.",
    ),
]
Val = Annotated[
    list[str] | None,
    typer.Option(metavar="GLOB", help="Names of images held out to choose the epoch; repeatable."),
]
Test = Annotated[
    list[str] | None,
    typer.Option(metavar="GLOB", help="Names of images never trained on; repeatable."),
]
ValShare = Annotated[
    float,
    typer.Option(
        metavar="SHARE",
        help="Labelled area held out of the training images, whole images at a time, where no validation "
        "part is named: above 0, to 0.5. Of a single image, its last rows.",
    ),
]
Classes = Annotated[
    str,
    typer.Option(
        metavar="A,B,C|FILE.json",
        help='Names in the order of the labels, or a JSON list of {"name", "colour", "value", '
        '"mask_colour"}, '
        "with colour (also of colour masks, unless mask_colour is given) and raw value or values in masks.",
    ),
]
LabelField = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="Attribute of polygons that names the class, by name or number. Default: class, class_name, "
        "label or class_index; without them all polygons are of --vector-class.",
    ),
]
VectorClass = Annotated[
    str,
    typer.Option(
        metavar="CLASS",
        help="Class of all polygons. Default: of two classes the one that is not background or other.",
    ),
]
Outside = Annotated[
    str,
    typer.Option(
        metavar="CLASS|unlabelled",
        help="Class of ground outside all polygons. Default: background or other, where there is such a "
        "class, else unlabelled.",
    ),
]
Gsd = Annotated[
    float | None,
    typer.Option(
        metavar="M",
        help="Ground resolution to train at, metres a pixel. Default: the data set's, or the first training "
        "image's.",
    ),
]


def data_config(
    *,
    dataset: str = "",
    root: Path | None = None,
    domains: str = DOMAINS,
    bands: str = "",
    data: Sequence[Path] | None = None,
    images: str = IMAGES,
    masks: str = MASKS,
    scenes: Sequence[Path] | None = None,
    val: Sequence[str] | None = None,
    test: Sequence[str] | None = None,
    val_share: float = VAL_SHARE,
    classes: str = "",
    label_field: str = "",
    vector_class: str = "",
    outside: str = "",
    gsd: float | None = None,
    seed: int = 0,
) -> DataConfig:
    """The options as a configuration.

    Raises:
        UsageError: they name no data, or contradict each other.
    """
    from rsseg_cli.data import DataConfig

    return DataConfig(
        dataset=dataset, root=root, domains=_listed(domains), bands=_listed(bands), folders=tuple(data or ()),
        images=images, masks=masks, scenes=tuple(scenes or ()), val=tuple(val or ()), test=tuple(test or ()),
        val_share=val_share, classes=classes, field=label_field, vector_class=vector_class, outside=outside,
        gsd_m=gsd, seed=seed,
    )  # fmt: skip


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())
