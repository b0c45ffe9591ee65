"""Where what is temporary of a run lies.

`.OUT.tif.rsseg/` holds the lock, the journal, finished rows and what else is temporary. What must be on the
file system of an output in another folder lies beside that one as `.NAME.rsseg-TAG...`, TAG for OUT.tif.
`.OUT.tif.rsseg-rubbish/` is what is left of the folder while it is removed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from rsseg_cli.journal import Publication
from rsseg_cli.lock import OutputLock

PUBLISHED = ("tif", "aux.xml", "png")  # endings of what gets its name by a rename


class Place:
    """Where what is temporary lies.

    Args:
        paths: outputs by kind; the folder is that of the labels.
    """

    def __init__(self, paths: Mapping[str, Path]) -> None:
        self.paths = {kind: Path(os.path.abspath(path)) for kind, path in paths.items()}
        self.output = self.paths["labels"]
        self.folder = self.output.with_name(f".{self.output.name}.rsseg")
        self.journal = self.folder / "journal.json"
        self.tag = f"rsseg-{hashlib.sha256(os.fsencode(self.output)).hexdigest()[:8]}"

    def of(self, kind: str, ending: str) -> Path:
        """A temporary file of an output; on the output's file system, if it is going to be renamed."""
        if ending not in PUBLISHED:
            return self.folder / f"{kind}.{ending}"
        return self.beside(self.paths[kind], f"{kind}.{ending}")

    def beside(self, path: Path, name: str) -> Path:
        """A temporary file or folder on the file system of an output."""
        if path.parent == self.output.parent:
            return self.folder / name
        return path.with_name(f".{path.name}.{self.tag}.{name}")

    def elsewhere(self) -> list[Path]:
        """Temporary files that lie beside other outputs."""
        prefixes = {(path.parent, f".{path.name}.{self.tag}.") for path in self.paths.values()}
        return [
            file
            for folder, prefix in prefixes
            if folder.is_dir()
            for file in folder.iterdir()
            if file.name.startswith(prefix) and not file.name.endswith(".old")
        ]

    def owns(self, publication: Publication) -> bool:
        """Whether a journal renames files of this place to names of these outputs alone."""
        files = [Path(os.path.normpath(file)) for file, _ in publication.renames]
        names = [name for _, name in publication.renames] + list(publication.leftovers)
        own = {self.folder, *self.elsewhere()}
        return all(own & {file, *file.parents} or not file.exists() for file in files) and all(
            any(
                Path(name).parent == path.parent and Path(name).name.startswith(f"{path.stem}.")
                for path in self.paths.values()
            )
            for name in names
        )


def empty(place: Place, kept: Collection[Path]) -> bool:
    """Remove what is temporary but for some files; whether there was anything."""
    stale = [file for file in (*place.folder.iterdir(), *place.elsewhere()) if file not in kept]
    _remove(stale)
    return bool(stale)


def remove(place: Place, lock: OutputLock) -> None:
    """Remove all that is temporary, and release the lock of its folder, which goes last."""
    _remove(place.elsewhere())
    lock.remove()


def _remove(files: Iterable[Path]) -> None:
    for path in files:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
