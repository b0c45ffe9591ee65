"""Published data sets, through TorchGeo's own classes: LoveDA, Vaihingen, Potsdam, and any other with masks.

Which part of a data set is what:
- LoveDA: its test part has no labels, so published ablations score its `val` part. That one is the test part
  here; a share of `train`, by scene, chooses the epoch.
- Vaihingen, Potsdam: train and test as in TorchGeo (the contest's); a share of train chooses the epoch.
- Inria: train and val as in TorchGeo; its test part has no labels.
- others: the splits that their class offers; without a validation part a share of train is held out.
"""

from __future__ import annotations

from fnmatch import fnmatch
from typing import TYPE_CHECKING

from rsseg_cli.benchmark_known import KNOWN, Found
from rsseg_cli.data_split import with_validation
from rsseg_cli.errors import DataError, UsageError

if TYPE_CHECKING:
    from rsseg_cli.datasets import DataConfig, LabelledData

PREFIX = "torchgeo:"


def open_benchmark(config: DataConfig) -> LabelledData:
    """Find a published data set in `config.root`; nothing is downloaded.

    Raises:
        DataError: the folder has another layout, or images or masks are missing, which are named.
        UsageError: no such data set, or options that do not fit it.
    """
    from dataclasses import replace

    from rsseg_cli.datasets import LabelledData

    if config.root is None:
        raise UsageError(f"--dataset {config.dataset}: needs --root, the folder that holds it")
    if not config.root.is_dir():
        raise DataError(f"--root {config.root}: is no folder; nothing is downloaded")
    if config.test:
        raise UsageError(f"--test: the test part of {config.dataset} is its own; leave it out")
    found = _find(config)
    sources = list(found.sources)
    for pattern in config.val:
        chosen = [item for item in sources if item.split in ("train", "val") and fnmatch(item.name, pattern)]
        if not chosen:
            shown = ", ".join(item.name for item in sources[:5])
            raise DataError(f"--val {pattern}: matches none of the training images ({shown} ...)")
        names = {item.name for item in chosen}
        sources = [replace(item, split="val") if item.name in names else item for item in sources]
    sources = with_validation(
        sources, lambda scenes: [1.0] * len(scenes), share=config.val_share, seed=config.seed
    )
    return LabelledData(
        found.name, tuple(sources), found.classes, found.bands, config.gsd_m or found.gsd_m, found.protocol
    )


def _find(config: DataConfig) -> Found:
    name = config.dataset.strip()
    opener = KNOWN.get(name.lower().removeprefix(PREFIX))
    if opener is not None:
        if config.classes:
            raise UsageError(f"--classes: {name} has classes of its own; leave it out")
        return opener(config)
    if not name.lower().startswith(PREFIX):
        raise UsageError(f"--dataset {name}: needs loveda, vaihingen, potsdam, or torchgeo:ClassName")
    from rsseg_cli.benchmark_torchgeo import open_torchgeo

    return open_torchgeo(name[len(PREFIX) :], config)
