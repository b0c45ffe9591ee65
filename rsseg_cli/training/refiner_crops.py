"""Crops and tiles for training a refiner: image, coarse map and labels with one geometry."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from rsseg_cli.data import LoadedScene
from rsseg_cli.raster import classes as class_values
from rsseg_cli.training.coarse_maps import UNSEEN, Maps
from rsseg_cli.training.config import RefiningConfig
from rsseg_cli.training.crops import CropConfig, CropDataset, pad_to
from rsseg_cli.training.degrade import degrade, random_map

WORSE_SHARE = 0.5


class LabelCrops(Dataset[tuple[Tensor]]):
    """Label maps int64 (crop, crop) for the codec: of scenes, half of them made worse, as the codec also has
    to carry coarse maps, and drawn ones.

    Args:
        scenes, drawn, config: as for `CropDataset`.
        refining: share of drawn maps, and how maps are made worse.
    """

    def __init__(
        self,
        scenes: Sequence[LoadedScene],
        config: CropConfig,
        drawn: Sequence[LoadedScene] = (),
        *,
        refining: RefiningConfig,
        classes: int,
    ) -> None:
        plain = dataclasses.replace(config, colour=0.0)
        first_band = [[dataclasses.replace(s, image=s.image[:1]) for s in part] for part in (scenes, drawn)]
        self.crops = CropDataset(first_band[0], plain, first_band[1])
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
        maps: coarse maps of each, of which a crop takes one at random.
        config: crops; without mosaic.
        closer: class probabilities of each scene, uint8 (N, height, width), 255 where there are none; empty
            without.
    """

    def __init__(
        self,
        scenes: Sequence[LoadedScene],
        maps: Sequence[Maps],
        config: CropConfig,
        refining: RefiningConfig,
        drawn: Sequence[LoadedScene] = (),
        closer: Sequence[NDArray[np.uint8]] = (),
    ) -> None:
        if len(maps) != len(scenes) or not all(maps):
            raise ValueError("every scene needs a coarse map")
        super().__init__(scenes, config, drawn)
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

    def planes(self, scene: int, window: tuple[slice, slice], rng: np.random.Generator) -> NDArray[np.uint8]:
        """Labels, one of the scene's coarse maps, and its closer look."""
        maps = self.maps[scene]
        planes = [self.scenes[scene].labels[window], maps[int(rng.integers(len(maps)))][window]]
        if self.closer:
            looked = self.closer[scene] if scene < len(self.closer) else None  # drawn scenes have none
            none = np.full_like(planes[0], UNSEEN)
            planes += [none if looked is None else looked[n][window] for n in range(len(self.closer[0]))]
        return np.stack(planes)


class RefinerTiles(Dataset[tuple[Tensor, Tensor, Tensor, int]]):
    """Validation tiles without overlap: image, coarse map, labels, and a number for the tile's noise.

    Of several processes (`rank` of `world`) each takes every world-th tile; one for which none is left gets a
    tile without labels.

    Args:
        tile_size: px.
        most: tiles that are taken, evenly over all that hold a label.
    """

    def __init__(
        self,
        scenes: Sequence[LoadedScene],
        maps: Sequence[NDArray[np.uint8]],
        tile_size: int,
        most: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.scenes, self.maps, self.tile_size = scenes, maps, tile_size
        tiles = [
            (index, (slice(row, row + tile_size), slice(col, col + tile_size)))
            for index, scene in enumerate(scenes)
            for row in range(0, scene.labels.shape[0], tile_size)
            for col in range(0, scene.labels.shape[1], tile_size)
        ]
        labelled = [(index, window) for index, window in tiles if self._is_labelled(index, window)] or tiles
        chosen = np.linspace(0, len(labelled) - 1, min(most, len(labelled))).round().astype(int)
        numbered = [(*labelled[index], int(index)) for index in chosen]
        self.tiles = numbered[rank::world] or numbered[:1]
        self.blank = rank >= len(numbered)

    def _is_labelled(self, index: int, window: tuple[slice, slice]) -> bool:
        return bool((self.scenes[index].labels[window] != class_values.IGNORE).any())

    def __len__(self) -> int:
        return len(self.tiles)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor, int]:
        scene, window, number = self.tiles[index]
        planes = np.stack([self.scenes[scene].labels[window], self.maps[scene][window]])
        image, planes = pad_to(self.scenes[scene].image[:, *window], planes, self.tile_size)
        labels, coarse = np.array(planes)
        if self.blank:
            labels[:] = class_values.IGNORE
        pixels = torch.from_numpy(np.array(image)).float() / 255
        return pixels, torch.from_numpy(coarse), torch.from_numpy(labels).long(), number
