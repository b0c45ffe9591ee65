"""Targets: refused before work where they are no regular file, and replaced with all that belongs to them."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from rsseg_cli.errors import OutputError
from rsseg_cli.files import check_target, companions, replace_all, write_atomic


def pipe(path: Path) -> None:
    os.mkfifo(path)


def listen(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(path.parent)  # names of sockets are short
        server.bind(path.name)
        os.chdir(here)


def link_to(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def link(path: Path) -> None:
        make(path.with_name("goal"))
        path.symlink_to("goal")

    return link


def link_into_another_folder(path: Path) -> None:
    (path.parent / "other").mkdir()
    (path.parent / "other" / "goal.tif").write_bytes(b"mine")
    path.symlink_to("other/goal.tif")


TARGETS = {
    "pipe": (pipe, "is a pipe, which no file can replace"),
    "socket": (listen, "is a socket, which no file can replace"),
    "folder": (Path.mkdir, "is a folder; needs the name of a file"),
    "link to a pipe": (link_to(pipe), "is a link to goal; pass the file that it leads to"),
    "link to a file": (link_to(Path.touch), "is a link to goal; pass the file that it leads to"),
    "link to a folder": (link_to(Path.mkdir), "is a link to goal"),
    "dangling link": (lambda path: path.symlink_to("nowhere"), "is a link to nowhere"),
    "link to a device": (lambda path: path.symlink_to("/dev/null"), "is a link to /dev/null"),
    "link into another folder": (link_into_another_folder, "is a link to other/goal.tif"),
}


def state_of(folder: Path) -> dict[str, tuple[int, int]]:
    return {path.name: (path.lstat().st_ino, path.lstat().st_mode) for path in folder.rglob("*")}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("kind", TARGETS)
def test_what_is_no_regular_file_is_refused_and_kept(tmp_path: Path, kind: str, overwrite: bool) -> None:
    make, message = TARGETS[kind]
    path, new = tmp_path / "map.tif", tmp_path / "new.tif"
    make(path)
    new.write_bytes(b"new")
    before = state_of(tmp_path)
    with pytest.raises(OutputError, match=f"map.tif: {message}"):
        check_target(path, overwrite=overwrite)
    with pytest.raises(OutputError, match=r"map\.tif: is a "):
        replace_all({new: path})
    with pytest.raises(OutputError, match=r"map\.tif: is a "), write_atomic(path) as file:
        file.write_bytes(b"new")
    assert state_of(tmp_path) == before


def test_a_device_is_refused() -> None:
    for name in ("/dev/null", "/dev/full"):
        with pytest.raises(OutputError, match=f"{name}: is a device"):
            check_target(Path(name), overwrite=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_folder_without_permission_is_refused(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o555)
    with pytest.raises(OutputError, match="no permission to write in"):
        check_target(tmp_path / "closed" / "map.tif")


@pytest.mark.parametrize(
    ("name", "belongs", "others"),
    [
        (
            "map.tif",
            ("map.tif.ovr", "map.tif.OVR", "map.tif.msk", "map.tif.msk.ovr", "map.tif.aux.xml"),
            ("map.tfw", "map.tif.bak", "map.ovr", "map2.tif.ovr"),
        ),
        ("m.p.TIFF", ("m.p.TIFF.ovr", "m.p.TIFF.aux.xml"), ("m.ovr",)),
        ("map.gpkg", ("map.gpkg-wal", "map.gpkg-shm", "map.gpkg-journal"), ("map.gpkg.bak", "map-wal")),
        (
            "map.shp",
            ("map.shx", "map.dbf", "map.prj", "map.cpg", "map.qix", "map.sbn", "map.sbx", "map.cst",
             "map.QIX", "map.class.atx", "map.shp.xml", "map.fbn", "map.ain"),
            ("map.tif", "map.qml", "map2.dbf", "map.txt"),
        ),
        ("map.geojson", (), ("map.gpkg-wal", "map.shx")),
    ],
)  # fmt: skip
def test_companions_go_with_the_file_that_they_belong_to(
    tmp_path: Path, name: str, belongs: tuple[str, ...], others: tuple[str, ...]
) -> None:
    for file in (name, *belongs, *others):
        (tmp_path / file).write_text("old")
    assert {path.name for path in companions(tmp_path / name)} == set(belongs)
    (tmp_path / "new").write_text("new")
    replaced = {tmp_path / "new": tmp_path / name}
    if belongs:
        (tmp_path / "more").write_text("new")
        replaced[tmp_path / "more"] = tmp_path / belongs[0]
    replace_all(replaced)
    left = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert left == {name: "new", **dict.fromkeys(belongs[:1], "new"), **dict.fromkeys(others, "old")}


def test_companions_come_back_where_a_name_cannot_be_given(tmp_path: Path) -> None:
    names = ("map.gpkg", "map.gpkg-wal", "map.gpkg-shm")
    for name in names:
        (tmp_path / name).write_text(name)
    with pytest.raises(OutputError, match="earlier files were left"):
        replace_all({tmp_path / "missing": tmp_path / "map.gpkg"})
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {name: name for name in names}


@pytest.mark.parametrize("hard_links", [True, False])
def test_where_a_name_cannot_be_given_all_stays_as_it_was(
    tmp_path: Path, hard_links: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not hard_links:
        monkeypatch.setattr(Path, "hardlink_to", lambda *_: (_ for _ in ()).throw(OSError("no links here")))
    for name in ("a.new", "b.new", "b.tif", "b.tif.ovr"):
        (tmp_path / name).write_text(name)
    before = {path.name: path.read_text() for path in tmp_path.iterdir()}
    names = {tmp_path / f"{name}.new": tmp_path / f"{name}.tif" for name in "abc"}  # without c.new
    with pytest.raises(OutputError, match="cannot be written"):
        replace_all(names)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == before
