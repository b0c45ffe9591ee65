"""What was found, told before training starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from rsseg_cli.crops import LoadedScene
from rsseg_cli.label_format import IGNORE

PARTS = {"train": "training", "val": "validation", "test": "test"}
COUNT_PX = 1 << 24  # labels counted at a time
RARE_SHARE = 0.001


def found_table(loaded: Mapping[str, Sequence[LoadedScene]], names: Sequence[str]) -> str:
    """A table of scenes, megapixels, labelled share, and labelled pixels of each class, a column a part.

    Beneath it, warnings: of classes that a part lacks, and of classes that hardly occur in training.

    Args:
        loaded: scenes by part ("train", "val", "test"; others keep their name); empty parts are left out.
        names: of the classes.
    """
    shown = {part: scenes for part, scenes in loaded.items() if scenes}
    counts = {part: np.sum([class_counts(scene) for scene in scenes], 0) for part, scenes in shown.items()}
    pixels = {part: sum(scene.labels.size for scene in scenes) for part, scenes in shown.items()}
    rows = [
        ["", *(PARTS.get(part, part) for part in shown)],
        ["scenes", *(f"{len(scenes):,}" for scenes in shown.values())],
        ["megapixels", *(f"{pixels[part] / 1e6:,.2f}" for part in shown)],
        ["labelled", *(f"{counts[part][:IGNORE].sum() / max(pixels[part], 1):.1%}" for part in shown)],
    ]
    for index, name in enumerate(names):
        rows.append([name, *(_share(counts[part], index) for part in shown)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    return "\n".join([*(line.rstrip() for line in lines), *_warnings(counts, names)])


def class_counts(scene: LoadedScene) -> NDArray[np.int64]:
    """Pixels of each label value, 0 to 255."""
    labels, counts = scene.labels, np.zeros(256, np.int64)
    step = max(1, COUNT_PX // max(labels.shape[1], 1))
    for row in range(0, labels.shape[0], step):
        counts += np.bincount(labels[row : row + step].ravel(), minlength=256)
    return counts


def _share(counts: NDArray[np.int64], index: int) -> str:
    return f"{counts[index]:,} ({counts[index] / max(counts[:IGNORE].sum(), 1):.1%})"


def _warnings(counts: Mapping[str, NDArray[np.int64]], names: Sequence[str]) -> list[str]:
    warnings = []
    for part, found in counts.items():
        absent = [name for index, name in enumerate(names) if not found[index]]
        if absent:
            effects = {"train": "nothing to learn from", "val": "no say in the choice of the epoch"}
            lack = f"no labels in the {PARTS.get(part, part)} part, {effects.get(part, 'no score')}"
            warnings.append(f"warning: {', '.join(absent)}: {lack}")
    if "train" in counts:
        total = counts["train"][:IGNORE].sum()
        rare = [n for k, n in enumerate(names) if 0 < counts["train"][k] < RARE_SHARE * total]
        if rare:
            warnings.append(f"warning: under 0.1 % of the training labels: {', '.join(rare)}")
    return warnings
