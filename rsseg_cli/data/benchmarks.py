"""LoveDA, Vaihingen, Potsdam and Inria: layouts, codings and protocols, checked pair by pair.

TorchGeo's classes name the files and splits. Pixels are read by our own readers, which take colours that are
no class for unlabelled and count them, where TorchGeo takes them for the first class.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

from rsseg_cli.data.label_format import IGNORE, LabelFormat
from rsseg_cli.data.pairs import named, unique_names
from rsseg_cli.data.scenes import LabelledScene
from rsseg_cli.data.types import DataConfig, LabelledData, ScoringProtocol, clean_names
from rsseg_cli.errors import DataError, UsageError
from rsseg_cli.weights import ClassSpec

logger = logging.getLogger(__name__)
PREFIX = "torchgeo:"
LOVEDA_COLOURS = (
    (255, 255, 255), (255, 0, 0), (255, 255, 0), (0, 0, 255), (159, 129, 183), (0, 255, 0), (255, 195, 128),
)  # fmt: skip
LOVEDA_LAYOUT = "{Train,Val}/{Urban,Rural}/{images_png,masks_png}/*.png"
LOVEDA_SPLITS = {"train": "train", "val": "test"}  # its own test part has no labels
RGB = ("red", "green", "blue")
ISPRS = {  # bands, those taken by default, m a pixel, patterns of the image's and the mask's file name
    "vaihingen": (("nir", "red", "green"), ("nir", "red", "green"), 0.09, ("{}", "{}")),
    "potsdam": ((*RGB, "nir"), RGB, 0.05, ("{}_RGBIR.tif", "{}_label.tif")),
}
INRIA_LAYOUT = "AerialImageDataset/train/{images,gt}/*.tif"
INRIA_VAL = 5  # images of a city that are its validation part
SYNONYMS = {"near-infrared": "nir", "near infrared": "nir", "infrared": "nir", "ir": "nir"}


def open_benchmark(config: DataConfig) -> LabelledData:
    """Find a published data set in `config.root`; nothing is downloaded."""
    if config.root is None:
        raise UsageError(f"--dataset {config.dataset}: needs --root, the folder that holds it")
    if not config.root.is_dir():
        raise DataError(f"--root {config.root}: is no folder; nothing is downloaded")
    if config.test:
        raise UsageError(f"--test: the test part of {config.dataset} is its own; leave it out")
    opened = _find(config)
    sources: list[Any] = list(opened.sources)
    if all(isinstance(source, LabelledScene) for source in sources):
        sources = unique_names(sources)
    for pattern in config.val:
        chosen = [item for item in sources if item.split in ("train", "val") and fnmatch(item.name, pattern)]
        if not chosen:
            shown = ", ".join(item.name for item in sources[:5])
            raise DataError(f"--val {pattern}: matches none of the training images ({shown} ...)")
        ids = set(map(id, chosen))
        sources = [replace(item, split="val") if id(item) in ids else item for item in sources]
    return replace(opened, sources=tuple(sources))


def _find(config: DataConfig) -> LabelledData:
    name = config.dataset.strip()
    opener = KNOWN.get(name.lower().removeprefix(PREFIX).removesuffix("2d"))
    if opener is not None:
        if config.classes:
            raise UsageError(f"--classes: {name} has classes of its own; leave it out")
        return opener(config)
    if not name.lower().startswith(PREFIX):
        raise UsageError(f"--dataset {name}: needs loveda, vaihingen, potsdam, or torchgeo:ClassName")
    from rsseg_cli.data.torchgeo import open_torchgeo

    return open_torchgeo(name[len(PREFIX) :], config)


def open_loveda(config: DataConfig) -> LabelledData:
    """LoveDA: train as training part, val as test part; label 0 is no data."""
    from torchgeo.datasets import LoveDA

    root, domains = Path(config.root or ""), tuple(dict.fromkeys(domain.lower() for domain in config.domains))
    if not domains or not set(domains) <= {"urban", "rural"}:
        raise UsageError(f"--domains {','.join(config.domains)}: needs urban, rural or both")
    classes = tuple(
        ClassSpec(name, colour) for name, colour in zip(LoveDA.classes[:7], LOVEDA_COLOURS, strict=True)
    )
    format = LabelFormat(
        class_names=tuple(item.name for item in classes), by_pixel=True,
        values={0: IGNORE, **{value + 1: value for value in range(7)}},
    )  # fmt: skip
    bands = choose_bands(config.bands, RGB, "loveda")
    scenes: list[LabelledScene] = []
    for theirs, ours in LOVEDA_SPLITS.items():
        folders = [root / theirs.capitalize() / domain.capitalize() for domain in domains]
        if not (root / theirs.capitalize()).is_dir():
            logger.warning("%s: has no %s folder; its %s part is empty", root, theirs.capitalize(), ours)
            continue
        for folder in folders:
            if not folder.is_dir():
                raise _wrong_layout(root, "LoveDA", LOVEDA_LAYOUT, f"{folder} is missing (see --domains)")
            files = ((folder / name).glob("*.png") for name in ("images_png", "masks_png"))
            _check_pairs(folder, *({path.stem for path in paths} for paths in files))
        part: dict[str, Any] = {"split": theirs, "scene": list(domains)}  # literals in its types
        dataset = LoveDA(root=str(root), **part, download=False, checksum=False)
        for pair in dataset.files:
            image = Path(pair["image"])
            name = f"{image.parent.parent.name.lower()}-{image.stem}"
            scenes.append(LabelledScene(image, Path(pair["mask"]), ours, name, format, bands, 0.3))
    if not scenes:
        raise _wrong_layout(root, "LoveDA", LOVEDA_LAYOUT, "no images found")
    logger.info(
        "loveda: the test part is its val part, as in published ablations; its own test part has no labels"
    )
    return LabelledData("loveda", tuple(scenes), classes, _names(bands), 0.3, ScoringProtocol(name="LoveDA"))


def open_isprs(config: DataConfig, *, title: str) -> LabelledData:
    """Both ISPRS sets: images in a folder, colour masks beside it, splits as TorchGeo lists them.

    Vaihingen has near-infrared, red and green; of Potsdam near-infrared is taken where it is asked for.
    """
    from torchgeo import datasets

    kind = getattr(datasets, f"{title.capitalize()}2D")
    own, usual, gsd_m, files = ISPRS[title]
    bands = choose_bands(config.bands or usual, own, title)
    root = Path(config.root or "")
    layout = f"{kind.image_root}/{files[0].format('*')} and {files[1].format('*')} beside that folder"
    if not (root / kind.image_root).is_dir():
        zips = ", ".join(kind.filenames)
        raise _wrong_layout(root, title, layout, f"{root / kind.image_root} is missing (unzip {zips} there)")
    names = clean_names(kind.classes)
    classes = tuple(ClassSpec(name, colour) for name, colour in zip(names, kind.colormap, strict=True))
    colours = {colour: index for index, colour in enumerate(kind.colormap)}
    format = LabelFormat(
        class_names=names, colours={(0, 0, 0): IGNORE} | colours, by_pixel=True, unknown="unlabelled"
    )
    scenes: list[LabelledScene] = []
    for split, official in kind.splits.items():
        images = {name for name in official if (root / kind.image_root / files[0].format(name)).is_file()}
        masks = {name for name in official if (root / files[1].format(name)).is_file()}
        _check_pairs(root, images, masks)
        absent = sorted(set(official) - images)
        if absent:
            logger.warning("%s: %d of %d images of the official %s part are absent: %s", root, len(absent),
                           len(official), split, named(absent))  # fmt: skip
        for pair in kind(root=str(root), split=split, checksum=False).files:
            image, mask = Path(pair["image"]), Path(pair["mask"])
            scenes.append(
                LabelledScene(image, mask, split, image.stem, format=format, bands=bands, gsd_m=gsd_m)
            )
    if not scenes:
        raise _wrong_layout(root, title, layout, "no image of the official list found")
    protocol = ScoringProtocol(name=f"ISPRS {title.capitalize()}", out_of_means=("clutter",))
    return LabelledData(title, tuple(scenes), classes, _names(bands), gsd_m, protocol)


def open_inria(config: DataConfig) -> LabelledData:
    """Inria aerial image labelling: images 1 to 5 of a city are the validation part; its test has no labels.

    Paired by name: TorchGeo 0.8 pairs by order and takes the image's number from the whole path.
    """
    from torchgeo.datasets import InriaAerialImageLabeling

    root = Path(config.root or "")
    folder = root / InriaAerialImageLabeling.directory / "train"
    if not (folder / "images").is_dir() or not (folder / "gt").is_dir():
        raise _wrong_layout(root, "Inria", INRIA_LAYOUT, f"{folder}/images or gt is missing")
    images = {path.stem: path for path in sorted((folder / "images").glob("*.tif"))}
    masks = {path.stem: path for path in (folder / "gt").glob("*.tif")}
    _check_pairs(folder, images, masks)
    if not images:
        raise _wrong_layout(root, "Inria", INRIA_LAYOUT, "no images found")
    classes = ClassSpec.from_names(["background", "building"])
    format = LabelFormat(class_names=("background", "building"), values={0: 0, 1: 1, 255: 1}, by_pixel=True)
    bands = choose_bands(config.bands, RGB, "inria")
    scenes = []
    for stem, image in images.items():
        number = re.search(r"(\d+)$", stem)
        split = "val" if number and int(number[1]) <= INRIA_VAL else "train"
        scenes.append(LabelledScene(image, masks[stem], split, stem, format, bands, 0.3))
    return LabelledData("inria", tuple(scenes), classes, _names(bands), 0.3, ScoringProtocol(name="Inria"))


KNOWN: dict[str, Callable[[DataConfig], LabelledData]] = {
    "loveda": open_loveda,
    **{title: partial(open_isprs, title=title) for title in ISPRS},
    "inria": open_inria,
    "inriaaerialimagelabeling": open_inria,
}


def choose_bands(wanted: Iterable[str], own: tuple[str, ...], title: str) -> tuple[tuple[int, str], ...]:
    """(1-based band, name) of the wanted bands, all of the data set's own by default."""
    plain = [SYNONYMS.get(name.strip().lower(), name.strip().lower()) for name in wanted] or list(own)
    unknown = [name for name in plain if name not in own]
    if unknown or len(set(plain)) < len(plain):
        raise UsageError(
            f"--bands {','.join(plain)}: {title} has {', '.join(own)}; needs different ones of them"
        )
    return tuple((own.index(name) + 1, name) for name in plain)


def _names(bands: tuple[tuple[int, str], ...]) -> tuple[str, ...]:
    return tuple(name for _, name in bands)


def _check_pairs(where: Path, images: Iterable[str], masks: Iterable[str]) -> None:
    """Refuse images without masks and masks without images, by name."""
    images, masks = set(images), set(masks)
    problems = []
    for kind, other, alone in (("images", "mask", images - masks), ("masks", "image", masks - images)):
        if alone:
            problems.append(f"{len(alone)} {kind} without {other}: {named(sorted(alone))}")
    if problems:
        raise DataError(f"{where}: {'; '.join(problems)}. Copy what is missing, or take the others away")


def _wrong_layout(root: Path, title: str, layout: str, problem: str) -> DataError:
    return DataError(f"--root {root}: {problem}. {title} needs {layout}; nothing is downloaded")
