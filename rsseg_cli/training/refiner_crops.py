"""Crops and tiles for training a refiner: image, coarse map and labels with one geometry."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from rsseg_cli.data import LoadedScene
from rsseg_cli.raster import classes as class_values
from rsseg_cli.training.coarse_maps import UNSEEN, Maps
from rsseg_cli.training.config import RefiningConfig, TrainConfig
from rsseg_cli.training.crops import CropDataset, TileDataset, Window
from rsseg_cli.training.degrade import degrade, random_map

WORSE_SHARE = 0.5


class LabelCrops(Dataset[tuple[Tensor]]):
    """Label maps int64 (crop, crop) for the codec: of scenes, half of them degraded, and random ones."""

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
            return (torch.from_numpy(random_map(rng, self.classes, config.crop_size)).long(),)
        labels = self.crops.crop(rng)[1][0]
        if rng.random() < WORSE_SHARE:
            labels = torch.from_numpy(degrade(labels.numpy(), rng, self.refining.degrade_px))
        return (labels.long(),)


class RefinerCrops(CropDataset):
    """Augmented crops: image float32 (bands, crop, crop) in [0, 1], coarse map uint8 and labels int64 (crop,
    crop); with closer looks also these, uint8 (N, crop, crop).

    Args:
        maps: coarse maps of each scene, of which a crop takes one at random.
        closer: class probabilities of each scene, uint8 (N, height, width), `UNSEEN` where unknown; or empty.
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

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:  # type: ignore[override]
        rng = np.random.default_rng((self.config.seed, index))
        image, planes = self.crop(rng)
        labels, coarse, *closer = planes.numpy()
        if rng.random() < self.refining.from_labels:
            coarse = np.where(labels == class_values.IGNORE, coarse, labels)
        if rng.random() < self.refining.degrade or np.array_equal(coarse, labels):
            coarse = degrade(coarse, rng, self.refining.degrade_px)
        crop = image, torch.from_numpy(np.array(coarse)), planes[0].long()
        return (*crop, planes[2:]) if closer else crop

    def planes(self, scene: int, window: Window, rng: np.random.Generator) -> NDArray[np.uint8]:
        """Return labels, one of the scene's coarse maps, and its closer look."""
        maps = self.maps[scene]
        planes = [self.scenes[scene].labels[window], maps[int(rng.integers(len(maps)))][window]]
        if self.closer:
            looked = self.closer[scene] if scene < len(self.closer) else None  # drawn scenes have none
            none = np.full_like(planes[0], UNSEEN)
            planes += [none if looked is None else looked[n][window] for n in range(len(self.closer[0]))]
        return np.stack(planes)


class RefinerTiles(TileDataset):
    """Validation tiles as in `TileDataset`: image, coarse map, labels, and a number for the tile's noise.

    Takes at most `max_tiles`, evenly over all that hold a label.
    """

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
        return image, coarse, labels.long(), self.tiles[index][2]
