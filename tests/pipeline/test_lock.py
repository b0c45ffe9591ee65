"""One run an output: the second is refused while the first lives."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import filelock
import pytest

from rsseg_cli.errors import OutputError
from rsseg_cli.pipeline import workdir as locking
from rsseg_cli.pipeline.workdir import OutputLock

HOLD = """
import sys, time
from pathlib import Path
from rsseg_cli.pipeline import OutputLock
lock = OutputLock(Path(sys.argv[1]), Path("map.tif"))
lock.acquire()
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def folder(tmp_path):
    return tmp_path / ".map.tif.rsseg"


def lock_of(folder):
    return OutputLock(folder, folder.with_name("map.tif"))


def test_the_second_is_reported_who_is_at_work_until_the_first_has_ended(folder):
    first = lock_of(folder)
    first.acquire()
    with pytest.raises(OutputError, match=rf"map\.tif: is being written by process {os.getpid()} on .*Wait"):
        lock_of(folder).acquire()
    first.remove()
    assert not folder.exists()
    second = lock_of(folder)
    second.acquire()
    second.release()
    assert folder.exists()


def test_a_lock_ends_with_its_process(folder):
    command = [sys.executable, "-c", HOLD, str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
    assert process.stdout.readline() == "held\n"
    with pytest.raises(OutputError, match=f"process {process.pid} on"):
        lock_of(folder).acquire()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    lock = lock_of(folder)
    lock.acquire()
    assert json.loads((folder / "owner.json").read_bytes())["process"] == os.getpid()
    lock.remove()
    assert not folder.exists()


def test_without_locks_of_the_system_a_file_stands_for_them(folder, monkeypatch):
    """As on some network file systems."""

    class Unsupported(filelock.FileLock):
        def _acquire(self):
            raise OSError(95, "Operation not supported")

    monkeypatch.setattr(locking.filelock, "FileLock", Unsupported)
    first = lock_of(folder)
    first.acquire()
    with pytest.raises(OutputError, match=f"process {os.getpid()} on"):
        lock_of(folder).acquire()
    first.remove()
    assert not folder.exists()


@pytest.mark.parametrize("owner", ["", "[1", "{}", '{"process": "x", "host": 1, "since": 2}', "[" * 5000])
def test_an_owner_that_cannot_be_read_is_another_run(folder, owner):
    first = lock_of(folder)
    first.acquire()
    (folder / "owner.json").write_text(owner)
    with pytest.raises(OutputError, match="is being written by another run"):
        lock_of(folder).acquire()
    first.release()


def test_a_link_in_place_of_the_folder_is_refused(folder, tmp_path):
    (tmp_path / "other").mkdir()
    folder.symlink_to(tmp_path / "other")
    with pytest.raises(OutputError, match="is a link"):
        lock_of(folder).acquire()
    folder.unlink()
    folder.write_text("a file")
    with pytest.raises(OutputError, match="cannot be written beside"):
        lock_of(folder).acquire()
