"""Pack the QGIS plugin, the same bytes each time: python3 qgis/package.py FOLDER"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
MADE = (1980, 1, 1, 0, 0, 0)  # the first time that a zip can hold


def pack(folder: Path) -> Path:
    """Write FOLDER/rsseg-qgis.zip, which QGIS installs, and return its path."""
    target = folder / "rsseg-qgis.zip"
    files = {f"rsseg/{path.name}": path for path in (HERE / "rsseg").iterdir() if path.is_file()}
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(target, "w") as archive:
        for name, path in sorted({**files, "rsseg/LICENSE": HERE.parent / "LICENSE"}.items()):
            item = zipfile.ZipInfo(name, MADE)
            item.external_attr = 0o644 << 16
            archive.writestr(item, path.read_bytes(), zipfile.ZIP_DEFLATED)
    return target


if __name__ == "__main__":
    print(pack(Path(sys.argv[1])))
