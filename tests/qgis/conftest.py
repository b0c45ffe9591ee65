"""A QGIS profile with the plugin from its zip, and the program as it is found on PATH."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from shared_scenes import save_models

ROOT = Path(__file__).resolve().parents[2]
PYTHON = "/usr/bin/python3"  # QGIS belongs to the system's Python
# Debian's qgis_process is a script that passes an option that the program does not know
PROCESS = shutil.which("qgis_process.bin") or shutil.which("qgis_process")
PROGRAM = """#!/bin/sh
echo "$$ ${PYTHONPATH-unset} ${LD_LIBRARY_PATH-unset}" > "$(dirname "$0")/started"
exec env PYTHONPATH=%s OMP_NUM_THREADS=1 %s -m rsseg_cli "$@"
"""
START = """
import json, sys
from qgis.core import *
application = QgsApplication([], True)
application.initQgis()
sys.path.append(QgsApplication.pkgDataPath() + "/python/plugins")
sys.path.append(QgsApplication.qgisSettingsDirPath() + "python/plugins")
import processing
from processing.core.Processing import Processing
Processing.initialize()
import rsseg
plugin = rsseg.classFactory(None)
plugin.initProcessing()
given = json.loads(sys.argv[1])
"""
END = """
print(json.dumps(found), flush=True)
import os
os._exit(0)
"""


@dataclass
class Qgis:
    """QGIS with a profile of its own."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("PROJ_", "GDAL_"))},
            "QT_QPA_PLATFORM": "offscreen",
            "QGIS_CUSTOM_CONFIG_PATH": str(self.folder),
            "XDG_RUNTIME_DIR": str(self.folder),
            "HOME": str(self.folder),
            "PATH": f"{self.folder}/bin:/usr/bin:/bin",
            "PYTHONWARNINGS": "ignore",
        }

    @property
    def plugins(self) -> Path:
        return self.folder / "profiles" / "default" / "python" / "plugins"

    @property
    def started(self) -> list[str]:
        """Process id, PYTHONPATH and LD_LIBRARY_PATH of the last run of the program."""
        return (self.folder / "bin" / "started").read_text().split()

    def process(self, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run qgis_process to its end."""
        return subprocess.run(
            [str(PROCESS), *map(str, arguments)], env=self.environment | environment, capture_output=True,
            text=True, check=False,
        )  # fmt: skip

    def start(self, *arguments: object) -> subprocess.Popen[str]:
        """Start qgis_process; its output can be read as it comes."""
        return subprocess.Popen(
            [str(PROCESS), *map(str, arguments)], env=self.environment, stdout=subprocess.PIPE, text=True,
            start_new_session=True,
        )  # fmt: skip

    def run(self, algorithm: str, code: int = 0, **values: object) -> str:
        """Run an algorithm; what qgis_process prints."""
        done = self.process("run", algorithm, *(f"--{name}={value}" for name, value in values.items()))
        text = f"{done.stdout}\n{done.stderr}"
        assert done.returncode == code, text
        return text

    def python(self, script: str, **given: object) -> Any:
        """Run a script inside QGIS, which sets `found`; its JSON."""
        command = [PYTHON, "-c", f"{START}{script}{END}", json.dumps(given, default=str)]
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=False,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # as in the foreground
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])


def _has_qgis() -> bool:
    if PROCESS is None or not Path(PYTHON).exists():
        return False
    return (
        subprocess.run([PYTHON, "-c", "import qgis.core"], capture_output=True, check=False).returncode == 0
    )


@pytest.fixture(scope="session")
def plugin_zip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    command = [sys.executable, ROOT / "qgis" / "package.py", tmp_path_factory.mktemp("zip")]
    return Path(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())


@pytest.fixture(scope="session")
def qgis(tmp_path_factory: pytest.TempPathFactory, plugin_zip: Path) -> Qgis:
    if not _has_qgis():
        pytest.skip("QGIS is not installed")
    here = Qgis(tmp_path_factory.mktemp("profile"))
    zipfile.ZipFile(plugin_zip).extractall(here.plugins)
    program = here.folder / "bin" / "rsseg"
    program.parent.mkdir()
    program.write_text(PROGRAM % (ROOT, sys.executable))
    program.chmod(0o755)
    enabled = here.process("plugins", "enable", "rsseg")
    assert "* rsseg" in enabled.stdout, enabled.stderr
    return here


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model, and the refiner that it names beside it."""
    return save_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def scene(make_raster: Callable[..., Path]) -> Path:
    return make_raster("Größe ü 1.tif", shape=(120, 160))
