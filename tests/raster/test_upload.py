"""Uploads to Google Cloud Storage and Azure; tests/batch has those of whole runs, to S3."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rsseg_cli.errors import OutputError
from rsseg_cli.raster.object_store import BLOCK_BYTES, size_of, upload

SERVER = Path(__file__).resolve().parents[1] / "s3_server.py"


@pytest.fixture
def store(tmp_path, monkeypatch):
    """The folder of an object store."""
    (tmp_path / "bucket").mkdir()
    with subprocess.Popen([sys.executable, SERVER, tmp_path], stdout=subprocess.PIPE, text=True) as server:
        port = server.stdout.readline().strip()
        azure = f"AccountName=key;AccountKey=c2VjcmV0;BlobEndpoint=http://127.0.0.1:{port}"
        for name, value in {
            "CPL_GS_ENDPOINT": f"http://127.0.0.1:{port}/", "GS_ACCESS_KEY_ID": "key",
            "GS_SECRET_ACCESS_KEY": "secret", "GDAL_HTTP_MAX_RETRY": "0",
            "AZURE_STORAGE_CONNECTION_STRING": f"DefaultEndpointsProtocol=http;{azure}",
        }.items():  # fmt: skip
            monkeypatch.setenv(name, value)
        yield tmp_path
        server.kill()


@pytest.mark.parametrize("scheme", ["gs", "az"])
@pytest.mark.parametrize("size", [1000, BLOCK_BYTES + 1000])
def test_a_file_arrives_whole(store, tmp_path, scheme, size):
    """A large one is not there until its last part is: the store joins the parts at the end."""
    file = tmp_path / "made"
    file.write_bytes(os.urandom(1000))
    os.truncate(file, size)
    upload(file, f"{scheme}://bucket/a b/map.tif")
    assert size_of(f"{scheme}://bucket/a b/map.tif") == size
    assert (store / "bucket" / "a b" / "map.tif").read_bytes() == file.read_bytes()


@pytest.mark.parametrize("scheme", ["gs", "az"])
def test_a_refused_upload_names_the_address(store, tmp_path, scheme):
    (store / "denied").touch()
    with pytest.raises(OutputError, match=f"{scheme}://bucket/denied.tif: cannot be written"):
        upload(store / "denied", f"{scheme}://bucket/denied.tif")
    assert size_of(f"{scheme}://bucket/denied.tif") is None
