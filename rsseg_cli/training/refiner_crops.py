"""Crops and tiles for training a refiner: image, coarse map and labels with one geometry.

Coarse maps are degraded as crops are drawn: mostly their boundaries, which a refiner can repair. Missing and
additional objects, which it cannot repair, are rare and small.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from rsseg_cli.data import LoadedScene
from rsseg_cli.raster import classes as class_values
from rsseg_cli.training.coarse_maps import Maps
from rsseg_cli.training.config import RefiningConfig, TrainConfig
from rsseg_cli.training.crops import CropDataset, TileDataset, Window

Labels = NDArray[np.uint8]
WORSE_SHARE = 0.5
WARP_PX = 24  # minimum distance over which a boundary's displacement changes
MAX_CLASSES = 8  # of a map that is smoothed, and of random blobs


class LabelCrops(Dataset[tuple[Tensor]]):
    """Label maps uint8 (crop, crop) for the codec: of scenes, half of them degraded, and random ones."""

    def __init__(
        self,
        scenes: Sequence[LoadedScene],
        config: TrainConfig,
        refining: RefiningConfig,
        drawn: Sequence[LoadedScene] = (),
        *,
        classes: int,
        gsd_m: float = 1.0,
    ) -> None:
        plain = dataclasses.replace(config, colour=0.0)
        first_band = [[dataclasses.replace(s, image=s.image[:1]) for s in part] for part in (scenes, drawn)]
        self.crops = CropDataset(first_band[0], plain, first_band[1], gsd_m=gsd_m)
        self.refining, self.classes = refining, classes

    def __getitem__(self, index: int) -> tuple[Tensor]:
        config = self.crops.config
        rng = np.random.default_rng((config.seed, index, 1))
        if rng.random() < self.refining.random_maps:
            return (torch.from_numpy(random_map(rng, self.classes, config.crop_size)),)
        labels = self.crops.crop(rng)[1][0]
        if rng.random() < WORSE_SHARE:
            labels = torch.from_numpy(degrade(labels.numpy(), rng, self.refining.degrade_px))
        return (labels,)


class RefinerCrops(CropDataset):
    """Augmented crops: image (bands, crop, crop), coarse map and labels (crop, crop), with closer looks also
    these (N, crop, crop), all uint8, and factors of colours. A crop takes one of its scene's `maps`.
    """

    def __init__(
        self,
        scenes: Sequence[LoadedScene],
        maps: Sequence[Maps],
        config: TrainConfig,
        refining: RefiningConfig,
        drawn: Sequence[LoadedScene] = (),
        closer: Sequence[NDArray[np.uint8]] = (),
        *,
        gsd_m: float = 1.0,
    ) -> None:
        if len(maps) != len(scenes) or not all(maps):
            raise ValueError("every scene needs a coarse map")
        super().__init__(scenes, config, drawn, gsd_m=gsd_m)
        self.maps = [*maps, *((scene.labels,) for scene in drawn)]
        self.refining, self.closer = refining, closer

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        rng = np.random.default_rng((self.config.seed, index))
        image, planes, factors = self.crop(rng)
        labels, coarse, *closer = planes.numpy()
        if rng.random() < self.refining.from_labels:
            coarse = np.where(labels == class_values.IGNORE, coarse, labels)
        if rng.random() < self.refining.degrade or np.array_equal(coarse, labels):
            coarse = degrade(coarse, rng, self.refining.degrade_px)
        crop = image, torch.from_numpy(np.array(coarse)), planes[0]
        return (*crop, planes[2:], factors) if closer else (*crop, factors)

    def planes(self, scene: int, window: Window, rng: np.random.Generator) -> NDArray[np.uint8]:
        maps = self.maps[scene]
        planes = [self.scenes[scene].labels[window], maps[int(rng.integers(len(maps)))][window]]
        if self.closer:
            looked = self.closer[scene] if scene < len(self.closer) else None  # drawn scenes have none
            none = np.full_like(planes[0], class_values.IGNORE)
            planes += [none if looked is None else looked[n][window] for n in range(len(self.closer[0]))]
        return np.stack(planes)


class RefinerTiles(TileDataset):
    """Image, coarse map, labels and a number of at most `max_tiles`, evenly over those that hold a label."""

    def __init__(
        self,
        scenes: Sequence[LoadedScene],
        maps: Sequence[NDArray[np.uint8]],
        tile_size: int,
        max_tiles: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.maps, self.max_tiles = maps, max_tiles
        super().__init__(scenes, tile_size, rank, world)

    def choose(self, tiles: list[tuple[int, Window]]) -> list[tuple[int, Window, int]]:
        labelled = [
            (scene, window)
            for scene, window in tiles
            if (self.scenes[scene].labels[window] != class_values.IGNORE).any()
        ] or tiles
        chosen = np.linspace(0, len(labelled) - 1, min(self.max_tiles, len(labelled))).round().astype(int)
        return [(*labelled[index], int(index)) for index in chosen]

    def planes(self, scene: int, window: Window) -> NDArray[np.uint8]:
        return np.stack([self.scenes[scene].labels[window], self.maps[scene][window]])

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        image, (labels, coarse) = self.tile(index)
        return image, coarse, labels, self.tiles[index][2]


def degrade(labels: Labels, rng: np.random.Generator, reach_px: int) -> Labels:
    """Return a worse map of the same classes, IGNORE where `labels`, uint8 (rows, cols), are."""
    present = np.flatnonzero(np.bincount(labels.ravel(), minlength=256)[: class_values.IGNORE])
    if len(present) < 2:
        return labels
    worse = labels
    chosen = rng.random(4) < (0.7, 0.4, 0.4, 0.15)
    if chosen[0] or not chosen.any():
        worse = warp(worse, rng, reach_px)
    if chosen[1]:
        worse = dilate(worse, int(rng.choice(present)), int(rng.integers(1, max(2, reach_px // 2 + 1))))
    if chosen[2]:
        worse = smooth_labels(worse, int(rng.integers(3, 9)), smooth=bool(rng.random() < 0.7))
    if chosen[3]:
        worse = drop_patches(worse, present, rng)
    return np.where((labels == class_values.IGNORE) | (worse == class_values.IGNORE), labels, worse)


def warp(labels: Labels, rng: np.random.Generator, reach_px: int) -> Labels:
    """Displace boundaries by a smooth random field and a shift, together up to about `reach_px`."""
    height, width = labels.shape
    cells = [max(2, round(side / rng.uniform(WARP_PX, 4 * WARP_PX))) + 1 for side in labels.shape]
    field = torch.from_numpy(rng.uniform(-1, 1, (1, 2, *cells)).astype(np.float32))
    amount = rng.uniform(1, reach_px) * 0.75
    moves = F.interpolate(field, size=(height, width), mode="bilinear", align_corners=True)[0] * amount
    shift = rng.uniform(-0.35, 0.35, 2) * reach_px
    rows = (moves[0] + torch.arange(height)[:, None] + float(shift[0])).round_().clamp_(0, height - 1)
    cols = (moves[1] + torch.arange(width)[None] + float(shift[1])).round_().clamp_(0, width - 1)
    return torch.from_numpy(labels).flatten()[(rows * width + cols).long()].numpy()


def dilate(labels: Labels, index: int, radius_px: int) -> Labels:
    """Grow one class by `radius_px`, at the cost of the others."""
    own = labels == index
    for turned in (own, own.T):  # a square, one axis after the other, in place
        done = 0
        while done < radius_px:
            step = min(radius_px - done, 2 * done + 1)
            before = turned.copy()
            turned[step:] |= before[:-step]
            turned[:-step] |= before[step:]
            done += step
    return np.where(own, np.uint8(index), labels)


def smooth_labels(labels: Labels, factor: int, *, smooth: bool) -> Labels:
    """Coarsen a map to pixels `factor` times as large: stairs, or where `smooth` rounded corners."""
    height, width = labels.shape
    small = labels[factor // 2 :: factor, factor // 2 :: factor]
    present = np.flatnonzero(np.bincount(small.ravel(), minlength=256)[: class_values.IGNORE])
    if smooth and 2 <= len(present) <= MAX_CLASSES:
        planes = torch.from_numpy(small[None] == present[:, None, None].astype(np.uint8))[None].float()
        scores = F.interpolate(planes, size=(height, width), mode="bilinear", align_corners=False)[0]
        return present.astype(np.uint8)[scores.max(0).indices.numpy()]
    rows = np.minimum(np.arange(height) // factor, small.shape[0] - 1)
    cols = np.minimum(np.arange(width) // factor, small.shape[1] - 1)
    return small[rows[:, None], cols]


def drop_patches(labels: Labels, classes: NDArray[np.integer], rng: np.random.Generator) -> Labels:
    """Draw one to three discs of radius 2 to 6 px, of one of `classes` each."""
    blotted = labels.copy()
    for _ in range(int(rng.integers(1, 4))):
        row, col = (int(rng.integers(0, side)) for side in labels.shape)
        radius = int(rng.integers(2, 7))
        part = blotted[max(0, row - radius) : row + radius + 1, max(0, col - radius) : col + radius + 1]
        down = np.arange(part.shape[0])[:, None] - min(row, radius)
        across = np.arange(part.shape[1]) - min(col, radius)
        part[down**2 + across**2 <= radius**2] = rng.choice(classes)
    return blotted


def random_map(rng: np.random.Generator, classes: int, size: int) -> Labels:
    """Draw a label map uint8 (size, size): smooth blobs or rotated rectangles of random classes."""
    if rng.random() < 0.5:
        count = min(classes, int(rng.integers(2, MAX_CLASSES + 1)))
        chosen = rng.choice(classes, count, replace=False).astype(np.uint8)
        cells = int(rng.integers(4, max(5, size // 8)))
        fields = torch.from_numpy(rng.standard_normal((1, count, cells, cells)).astype(np.float32))
        fields = F.interpolate(fields, size=(size, size), mode="bicubic", align_corners=False)
        return chosen[fields[0].max(0).indices.numpy()]
    labels = np.full((size, size), rng.integers(classes), np.uint8)
    rows, cols = np.arange(size, dtype=np.float32)[:, None], np.arange(size, dtype=np.float32)
    for _ in range(int(rng.integers(4, 25))):
        (row, col), angle = rng.uniform(0, size, 2), rng.uniform(0, np.pi)
        length, width = np.exp(rng.uniform(np.log(2), np.log(size / 4), 2))
        along = (rows - row) * np.cos(angle) + (cols - col) * np.sin(angle)
        across = (cols - col) * np.cos(angle) - (rows - row) * np.sin(angle)
        labels[(np.abs(along) < length) & (np.abs(across) < width)] = rng.integers(classes)
    return labels
