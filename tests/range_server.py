"""python range_server.py FOLDER: serves a folder by ranges on a free port of this machine, as buckets do.

Prints the port, then a line a request: status, bytes sent, whether it was signed, path. A program of its own
because GDAL may hold Python's lock while it waits for an answer. Paths that begin with /busy-N are answered
503 N times; those with /cut-N are cut short N times, but for requests of the first bytes; those with /torn-N
are cut short N times, requests of the first bytes alone; those with /elsewhere are sent on to the file itself
by file://.
"""

from __future__ import annotations

import sys
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

FOLDER = Path(sys.argv[1])
SERVED: Counter[str] = Counter()
MOODS = ("busy", "cut", "torn", "elsewhere")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        mood, _, times = path.split("/")[1].partition("-")
        file = FOLDER / (path.lstrip("/") if mood not in MOODS else path.split("/", 2)[2])
        status, data, headers = 404, b"", {}
        if file.is_file():
            status, data = 200, file.read_bytes()
            headers["Accept-Ranges"] = "bytes"
            if asked := self.headers.get("Range"):
                first, last = asked.removeprefix("bytes=").split("-")
                size, part = len(data), slice(int(first), int(last) + 1 if last else None)
                status, data = 206, data[part]
                headers["Content-Range"] = f"bytes {part.start}-{part.start + len(data) - 1}/{size}"
        if mood == "busy" and SERVED[path] < int(times):
            SERVED[path] += 1
            status, data, headers = 503, b"", {}
        if mood == "elsewhere":
            status, data, headers = 302, b"", {"Location": f"file://{file}"}
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        body = data if self.command == "GET" else b""
        cut = body and mood in ("cut", "torn") and (part.start > 0) == (mood == "cut")
        if cut and SERVED[path] < int(times):
            SERVED[path] += 1
            body, self.close_connection = body[: len(body) // 2 if mood == "cut" else 100], True
        self.wfile.write(body)
        signed = self.headers.get("Authorization", "").startswith("AWS4-HMAC-SHA256")
        print(status, len(body), signed, path, flush=True)

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        """Its lines are those above."""


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()
