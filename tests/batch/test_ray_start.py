"""The cluster that docs/scale.md starts by hand, both of its nodes on this machine."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("ray")
PAGE = Path(__file__).parents[2] / "docs/scale.md"


@pytest.mark.slow
def test_cluster_started_by_the_lines_of_the_page(tmp_path: Path) -> None:
    (tmp_path / "sheets").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    _, part = PAGE.read_text(encoding="utf-8").split("\n## Your own cluster\n")
    lines = re.findall(r"^    ((?:export|ray|rsseg) .+)$", part.split("\n## ")[0], re.MULTILINE)
    for name in ("a", "b"):
        lines.insert(0, f"rsseg demo-scene /mnt/sheets/{name}.tif --size 256")
    script = "\n".join(lines).replace("HEAD", "127.0.0.1").replace("6379", port)
    script = script.replace("/mnt/", f"{tmp_path}/")
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(tmp_path),  # no token yet
    }
    try:
        done = subprocess.run(
            ["bash", "-euc", script], env=environment, capture_output=True, text=True, timeout=600
        )
    finally:
        # `ray stop` would end those of other tests
        subprocess.run(["pkill", "-KILL", "-f", f"[:=]{port}"], check=False)
        remembered = Path("/tmp/ray/ray_current_cluster")
        if remembered.is_file() and remembered.read_text().endswith(f":{port}"):
            remembered.unlink()
    assert done.returncode == 0, f"{script}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    made = sorted(path.name for path in (tmp_path / "maps").glob("*.gpkg"))
    assert made == ["a_landcover.gpkg", "b_landcover.gpkg"]
