"""Augmented crops of labelled scenes, and whole scenes in tiles.

Every crop follows from (seed, index) alone, so a resumed run sees the crops that an uninterrupted one sees.
Crops leave as bytes, with the factors of their colours, which vary on the device.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset, Sampler

from rsseg_cli.data import LoadedScene
from rsseg_cli.errors import DataError
from rsseg_cli.raster import classes as class_values
from rsseg_cli.training.config import TrainConfig
from rsseg_cli.weights import ModelSpec

ONE_CROP_PX = 1024 * 1024  # an image of up to this area gives one crop a pass
Window = tuple[slice, slice]
ROWS = 1024  # read at once of a scene on disk


class CropDataset(Dataset[tuple[Tensor, ...]]):
    """Augmented crops: image uint8 (bands, crop, crop), labels uint8 (crop, crop), colours' factors.

    Real scenes are as likely as the square root of their labelled area on the ground, drawn ones equally;
    `gsd_m` is the resolution of a crop at scale 1.
    """

    def __init__(
        self,
        scenes: Sequence[LoadedScene],
        config: TrainConfig,
        drawn: Sequence[LoadedScene] = (),
        *,
        gsd_m: float = 1.0,
    ) -> None:
        self.scenes, self.config, self.gsd_m = [*scenes, *drawn], config, gsd_m
        weights = np.sqrt([_labelled_px(scene) * scene.gsd_m**2 for scene in scenes])
        if not weights.sum():
            raise DataError("no labelled pixel in the training scenes")
        share = config.drawn_share if drawn else 0.0
        self.weights = np.concatenate(
            [weights / weights.sum() * (1 - share), np.full(len(drawn), share / max(len(drawn), 1))]
        )

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        image, planes, factors = self.crop(np.random.default_rng((self.config.seed, index)))
        return image, planes[0], factors

    def crop(self, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Return an image uint8 (bands, crop, crop), its `planes` uint8 (P, crop, crop), its factors."""
        size = self.config.crop_size
        if rng.random() < self.config.mosaic:
            parts = [self._varied_crop(rng, size // 2) for _ in range(4)]
            image, planes = (
                torch.cat([torch.cat(quarters[:2], 2), torch.cat(quarters[2:], 2)], 1)
                for quarters in zip(*parts, strict=True)
            )
        else:
            image, planes = self._varied_crop(rng, size)
        if self.config.turns:
            quarters, flip = int(rng.integers(4)), bool(rng.integers(2))
            image, planes = (torch.rot90(item, quarters, (1, 2)) for item in (image, planes))
            image, planes = (image.flip(2), planes.flip(2)) if flip else (image, planes)
        image = worsen(image, rng, self.config.colour)
        factors = draw_factors(rng, len(image), self.config.colour)
        return image.contiguous(), planes.contiguous(), factors

    def planes(self, scene: int, window: Window, rng: np.random.Generator) -> NDArray[np.uint8]:
        """Return class planes of a window of a scene, (P, rows, cols); the first holds the labels."""
        return self.scenes[scene].labels[None, *window]

    def _varied_crop(self, rng: np.random.Generator, size: int) -> tuple[Tensor, Tensor]:
        for _ in range(self.config.redraws):
            image, planes = self._crop(int(rng.choice(len(self.scenes), p=self.weights)), rng, size)
            counts = np.bincount(planes[0].ravel(), minlength=256)[: class_values.IGNORE]
            if counts.sum() and counts.max() <= self.config.redraw_above * counts.sum():
                break
        # copies: a scene's files are read-only
        pixels, classes = torch.from_numpy(np.array(image))[None], torch.from_numpy(np.array(planes))
        if pixels.shape[-1] == size:
            return pixels[0], classes
        pixels = F.interpolate(
            pixels, size=(size, size), mode="bilinear", align_corners=False, antialias=True
        )
        return pixels[0], F.interpolate(classes[None], size=(size, size), mode="nearest-exact")[0]

    def _crop(
        self, index: int, rng: np.random.Generator, size: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        scene = self.scenes[index]
        low, high = self.config.scales
        scale = float(np.exp(rng.uniform(np.log(low), np.log(high))))
        side = max(8, round(size * self.gsd_m / scene.gsd_m / scale))
        height, width = scene.labels.shape
        row = int(rng.integers(0, max(height - side, 0) + 1))
        col = int(rng.integers(0, max(width - side, 0) + 1))
        window = slice(row, row + side), slice(col, col + side)
        return pad_to(scene.image[:, *window], self.planes(index, window, rng), side)


def pad_to(
    image: NDArray[np.uint8], planes: NDArray[np.uint8], side: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Pad both on the right and below to `side` x `side` px: with the image's edge, with no class."""
    short = (0, 0), (0, side - image.shape[1]), (0, side - image.shape[2])
    if image.shape[1:] == (side, side):
        return image, planes
    return np.pad(image, short, mode="edge"), np.pad(planes, short, constant_values=class_values.IGNORE)


def worsen(image: Tensor, rng: np.random.Generator, strength: float) -> Tensor:
    """Blur some images (bands, H, W), of bytes or in [0, 1], and add noise to some."""
    if rng.random() < 0.25 * strength:
        small = tuple(max(1, int(side * rng.uniform(0.4, 0.9))) for side in image.shape[1:])
        softer = F.interpolate(image[None], size=small, mode="bilinear", antialias=True)
        image = F.interpolate(softer, size=image.shape[1:], mode="bilinear", align_corners=False)[0]
    if rng.random() < 0.3 * strength:
        noise = torch.from_numpy(rng.standard_normal(image.shape, dtype=np.float32))
        noise *= float(rng.uniform(0, 0.04))
        if image.dtype == torch.uint8:
            return (image + 255 * noise).round_().clamp_(0, 255).byte()
        image = (image + noise).clamp_(0, 1)
    return image


def draw_factors(rng: np.random.Generator, bands: int, strength: float) -> Tensor:
    """Draw how an image's colours vary, float32 (bands + 3,): gains by band, saturation, contrast, gamma.

    All are 1 where the strength is 0.
    """
    common = rng.uniform(-0.25, 0.25) * strength
    exponents = [
        *(common + rng.uniform(-0.12, 0.12, bands) * strength),
        rng.uniform(-0.5, 0.4) * strength,
        rng.uniform(-0.3, 0.3) * strength,
        rng.uniform(-0.25, 0.25) * strength,
    ]
    return torch.from_numpy(np.exp(exponents)).float()


def vary_colours(images: Tensor, factors: Tensor) -> Tensor:
    """Vary the colours of images (B, bands, H, W) in [0, 1] by their factors (B, bands + 3)."""
    bands = images.shape[1]
    saturation, contrast, gamma = factors[:, bands:, None, None, None].unbind(1)
    images = images * factors[:, :bands, None, None]
    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * saturation
    mean = images.mean((1, 2, 3), keepdim=True)
    return (mean + (images - mean) * contrast).clamp(0, 1) ** gamma


def _labelled_px(scene: LoadedScene) -> int:
    rows = range(0, scene.labels.shape[0], ROWS)
    return sum(int(np.count_nonzero(scene.labels[row : row + ROWS] != class_values.IGNORE)) for row in rows)


def crops_per_pass_of(scenes: Sequence[LoadedScene], config: TrainConfig, gsd_m: float = 1.0) -> int:
    """Count the crops of one pass over the scenes: as many as fill the area of an image, one for an image of
    up to 1024 x 1024 px, as the released program draws them of LoveDA."""
    total = 0
    for scene in scenes:
        crop_px = (config.crop_size * gsd_m / scene.gsd_m) ** 2
        is_small = scene.labels.size <= ONE_CROP_PX
        total += 1 if is_small else max(1, round(scene.labels.size / crop_px))
    return total


class EpochSampler(Sampler[int]):
    """Indices that never repeat: epoch e yields e * length to (e + 1) * length - 1.

    `length` counts the crops of all processes. `world` processes with batches of B see in a step what one
    sees with batches of world * B.
    """

    def __init__(self, length: int, batch_size: int = 1, rank: int = 0, world: int = 1) -> None:
        if length % (batch_size * world):
            raise ValueError(f"{length} crops are no multiple of {batch_size} x {world}")
        self.length, self.batch_size, self.rank, self.world = length, batch_size, rank, world
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        size, start = self.batch_size, self.epoch * self.length
        for first in range(start + self.rank * size, start + self.length, self.world * size):
            yield from range(first, first + size)

    def __len__(self) -> int:
        return self.length // self.world


class TileDataset(Dataset[tuple[Tensor, ...]]):
    """Whole scenes in tiles without overlap, for validation: uint8 image (bands, tile, tile), labels.

    Process `rank` of `world` takes every world-th tile; one without a tile takes one without labels.
    """

    def __init__(self, scenes: Sequence[LoadedScene], tile_size: int, rank: int = 0, world: int = 1) -> None:
        self.scenes, self.tile_size = scenes, tile_size
        tiles = [
            (index, (slice(row, row + tile_size), slice(col, col + tile_size)))
            for index, scene in enumerate(scenes)
            for row in range(0, scene.labels.shape[0], tile_size)
            for col in range(0, scene.labels.shape[1], tile_size)
        ]
        chosen = self.choose(tiles)
        self.tiles = chosen[rank::world] or chosen[:1]
        self.blank = rank >= len(chosen)

    def choose(self, tiles: list[tuple[int, Window]]) -> list[tuple[int, Window, int]]:
        """Return the tiles (scene, window) of all processes, with a number each."""
        return [(*tile, number) for number, tile in enumerate(tiles)]

    def __len__(self) -> int:
        return len(self.tiles)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        image, planes = self.tile(index)
        return image, planes[0]

    def planes(self, scene: int, window: Window) -> NDArray[np.uint8]:
        return self.scenes[scene].labels[None, *window]

    def tile(self, index: int) -> tuple[Tensor, Tensor]:
        """Return a tile's image and its `planes`, both uint8."""
        scene, window, _ = self.tiles[index]
        image, planes = pad_to(
            self.scenes[scene].image[:, *window], self.planes(scene, window), self.tile_size
        )
        image, planes = np.array(image), np.array(planes)  # copies: a scene's files are read-only
        if self.blank:
            planes[0] = class_values.IGNORE
        return torch.from_numpy(image), torch.from_numpy(planes)


def draw_training_scenes(
    spec: ModelSpec, *, count: int, gsd_m: float, size: int = 1024, seed: int = 1000
) -> list[LoadedScene]:
    """Draw scenes of any style with the model's classes; others become `background`, else unlabelled.

    A resolution that cannot be drawn becomes the nearest that can.
    """
    from rsseg_cli.data import synthetic

    gsd_m = min(max(gsd_m, synthetic.GSD_RANGE_M[0]), synthetic.GSD_RANGE_M[1])
    names, drawn = spec.class_names, [name for name, _ in synthetic.CLASSES]
    other = names.index("background") if "background" in names else class_values.IGNORE
    if not set(names) & set(drawn):
        raise DataError(
            f"drawn scenes have {', '.join(drawn)}; the model has {', '.join(names)}: "
            "leave --drawn-share at 0"
        )
    table = np.full(256, class_values.IGNORE, np.uint8)
    table[: len(drawn)] = [names.index(name) if name in names else other for name in drawn]
    scenes = []
    for index in range(count):
        image, labels = synthetic.draw_scene(size, seed + index, gsd_m, style="any")
        scenes.append(LoadedScene(f"drawn-{seed + index}", image, table[labels], gsd_m))
    return scenes
