"""A real server that speaks as much of Hugging Face's API as `HfFileSystem` asks of it."""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

API = re.compile(r"/api/models/org/repo/(revision|tree|paths-info)/([^/]+)/?(.*)")
FILE = re.compile(r"/org/repo/resolve/([^/]+)/(.+)")
COMMIT = "0123456789012345678901234567890123456789"


class _Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    folder: Path
    asked: list[tuple[str, str]]

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        place = unquote(urlsplit(self.path).path)
        self.asked.append((place, self.headers.get("Range") or ""))
        if found := API.fullmatch(place):
            kind, revision, below = found.groups()
            if revision != "v2":
                self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            elif kind == "revision":
                self._json({"id": "org/repo", "sha": COMMIT, "tags": [], "siblings": []})
            else:
                self._json(self._tree(below))
        elif (found := FILE.fullmatch(place)) and (self.folder / found[2]).is_file():
            self._range((self.folder / found[2]).read_bytes())
        else:
            self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"})

    def do_POST(self) -> None:
        wanted = self.rfile.read(int(self.headers["Content-Length"])).decode()
        place = unquote(urlsplit(self.path).path)
        self.asked.append((place, wanted))
        self._json([f for f in self._tree("") if f["path"] in unquote(wanted)])

    def _tree(self, below: str) -> list[dict[str, object]]:
        folder = self.folder / below
        found = sorted(folder.iterdir()) if folder.is_dir() else []
        return [
            {
                "type": "directory" if path.is_dir() else "file",
                "oid": sha1(str(path.stat().st_mtime_ns).encode()).hexdigest(),
                "size": 0 if path.is_dir() else path.stat().st_size,
                "path": str(path.relative_to(self.folder)),
            }
            for path in found
        ]

    def _range(self, data: bytes) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
        assert asked is not None, "a whole file was asked for"
        first, last = int(asked[1]), min(int(asked[2]), len(data) - 1)
        says = {"Content-Range": f"bytes {first}-{last}/{len(data)}", "ETag": '"x"'}
        self._send(206, data[first : last + 1], says)

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def hub(folder: Path) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Give the endpoint, whose repository `org/repo` has the revision v2, and what it is asked."""
    asked: list[tuple[str, str]] = []
    handler = type("Hub", (_Hub,), {"folder": folder, "asked": asked})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
