"""python s3_server.py FOLDER: an object store on a free port of this machine, FOLDER/BUCKET/NAME its objects.

It speaks the languages of S3, Google Cloud Storage and Azure as far as GDAL needs them. Prints the port, then
a line a request: method, status, path. Requests must be signed, by "key". Names that hold
"denied" are refused while the file FOLDER/denied is there. A program of its own, as GDAL may hold Python's
lock.
"""

from __future__ import annotations

import re
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

FOLDER = Path(sys.argv[1])
PARTS: dict[str, dict[int, bytes]] = {}
BLOCKS: dict[str, dict[str, bytes]] = {}
SIGNED = ("AWS4-HMAC-SHA256", "GOOG1 key:", "SharedKey key:")
REFUSED = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
MISSING = b"<Error><Code>NoSuchKey</Code><Message>no such key</Message></Error>"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        data = self.file.read_bytes() if self.file.is_file() else None
        if data is None:
            self.answer(404, MISSING)
        elif asked := self.headers.get("Range"):
            first, last = asked.removeprefix("bytes=").split("-")
            part = data[int(first) : int(last) + 1 if last else None]
            extent = f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}"
            self.answer(206, part, {"Content-Range": extent})
        else:
            self.answer(200, data, {"Accept-Ranges": "bytes"})

    do_HEAD = do_GET

    def do_PUT(self) -> None:
        body = self.body()
        number, upload = self.query.get("partNumber"), self.query.get("uploadId")
        signed = self.headers.get("Authorization", "").startswith(SIGNED)
        denied = "denied" in self.file.name and (FOLDER / "denied").exists()
        if denied or not signed:
            self.answer(403, REFUSED)
        elif "x-ms-version" in self.headers:
            self.put_blob(body)
        elif number and upload:
            PARTS[upload[0]][int(number[0])] = body
            self.answer(200, b"", {"ETag": f'"{number[0]}"'})
        else:
            self.keep(body)
            self.answer(200, b"", {"ETag": '"0"'})

    def put_blob(self, body: bytes) -> None:
        """As Azure does: an empty blob, what is appended to it, a block of one, or the list of its blocks."""
        kind, block = self.query.get("comp", [""])[0], self.query.get("blockid", [""])[0]
        blocks = BLOCKS.setdefault(self.path.partition("?")[0], {})
        if kind == "block":
            blocks[block] = body
        elif kind == "blocklist":
            self.keep(b"".join(blocks[name] for name in re.findall(r"<Latest>([^<]+)<", body.decode())))
        elif kind == "appendblock":
            self.keep(self.file.read_bytes() + body)
        else:
            self.keep(body)
        self.answer(201, b"")

    def do_POST(self) -> None:
        self.body()
        upload = self.query.get("uploadId")
        if upload:
            parts = PARTS.pop(upload[0])
            self.keep(b"".join(parts[number] for number in sorted(parts)))
            self.answer(200, b"<CompleteMultipartUploadResult/>")
        else:
            name = str(len(PARTS))
            PARTS[name] = {}
            content = (
                f"<InitiateMultipartUploadResult><UploadId>{name}</UploadId></InitiateMultipartUploadResult>"
            )
            self.answer(200, content.encode())

    @property
    def file(self) -> Path:
        return FOLDER / unquote(urlsplit(self.path).path.lstrip("/"))

    @property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.path).query, keep_blank_values=True)

    def keep(self, content: bytes) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_bytes(content)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def answer(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
        print(self.command, status, self.path, flush=True)

    def log_message(self, *_: object) -> None:
        """Its lines are those above."""


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()
