"""Real web servers on this machine: one that knows ranges, and one for every way not to."""

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


@dataclass
class Site:
    """A folder that is served, how, and what was asked for."""

    folder: Path
    behaviour: str = "good"
    """"good", or what is wrong with the server."""
    url: str = ""
    requests: list[tuple[str, str, int]] = field(default_factory=list)
    """(path, Range, bytes sent)."""
    seen: int = 0
    """Requests so far."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def sent(self) -> int:
        return sum(nbytes for _, _, nbytes in self.requests)

    def forget(self) -> None:
        self.requests.clear()
        self.seen = 0


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    site: Site

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        site = self.site
        with site.lock:
            site.seen += 1
            count = site.seen
        if self._odd(site.behaviour, count):
            return
        file = site.folder / unquote(urlsplit(self.path).path).lstrip("/")
        if not file.is_file():
            self._plain(404)
            return
        size = file.stat().st_size
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if asked is None or site.behaviour == "no ranges":
            self._whole(file, size)
            return
        first, last = int(asked[1]), min(int(asked[2]), size - 1)
        if first >= size:
            self._plain(416, {"Content-Range": f"bytes */{size}"})
            return
        self._range(file, first, last, size, count)

    def _odd(self, behaviour: str, count: int) -> bool:
        """Answer as a server does that has a trouble; False where the file is to be sent."""
        if behaviour == "busy once" and count == 1:
            self._plain(503)
        elif behaviour.startswith("status "):
            self._plain(int(behaviour.removeprefix("status ")))
        elif behaviour.startswith("redirect "):
            self._plain(302, {"Location": behaviour.removeprefix("redirect ")})
        elif behaviour == "drips headers":
            self._drip(b"HTTP/1.1 206 Partial Content\r\nX-A: " + b"a" * 10_000)
        elif behaviour == "continues":
            self._drip(b"HTTP/1.1 100 Continue\r\n\r\n" * 10_000)
        elif behaviour == "password" and self.headers.get("Authorization") != "Basic bWU6c2VjcmV0":
            self._plain(401)
        else:
            return False
        return True

    def _drip(self, data: bytes) -> None:
        """Send the bytes one by one, for half a minute at most."""
        self.close_connection = True
        try:
            for n in range(3000):
                self.wfile.write(data[n % len(data) : n % len(data) + 1])
                time.sleep(0.01)
        except OSError:
            pass

    def _plain(self, status: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()
        self._note(0)

    def _whole(self, file: Path, size: int) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(size))
        self.end_headers()
        self._note(size)
        try:
            with file.open("rb") as stream:
                while piece := stream.read(1 << 16):
                    self.wfile.write(piece)
        except OSError:
            self.close_connection = True

    def _range(  # noqa: C901, PLR0912 - one branch for each lie
        self, file: Path, first: int, last: int, size: int, count: int
    ) -> None:
        with file.open("rb") as stream:
            stream.seek(first)
            data = stream.read(last - first + 1)
        behaviour = self.site.behaviour
        etag, says, length = (
            f'"{file.stat().st_mtime_ns}"',
            f"bytes {first}-{last}/{size}",
            len(data),
        )
        if behaviour == "lies":
            says = f"bytes {first + 8}-{last + 8}/{size}"
        elif behaviour == "unknown size":
            says = f"bytes {first}-{last}/*"
        elif behaviour == "too much":
            data, length = data + b"more", length + 4
        elif behaviour == "too little":
            data, length = data[:-1], length - 1
        elif behaviour == "changes" and count > 1:
            etag = '"another"'
        elif behaviour == "negative":
            says = f"bytes -{first}-{last}/{size}"
        elif behaviour == "counts backwards":
            says = f"bytes {last}-{first}/{size}"
        elif behaviour == "loses its tag" and count > 1:
            etag = ""
        elif behaviour == "changes silently":
            etag = ""
            data = bytes([data[0] ^ 1]) + data[1:] if count > 1 and not first else data
        elif behaviour == "grows" and count > 1:
            says = f"bytes {first}-{last}/{size + 1}"
        self.send_response(206)
        if behaviour != "no content-range":
            self.send_header("Content-Range", says)
        if behaviour == "compresses":
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(length))
        if etag:
            self.send_header("ETag", etag)
        self.end_headers()
        if behaviour == "drips":
            self._drip(data)
            return
        cut = behaviour == "cuts off" or (behaviour == "cuts off once" and count == 1)
        data = data[: len(data) // 2] if cut else data
        self._note(len(data))
        self.wfile.write(data)
        self.close_connection = cut

    def _note(self, nbytes: int) -> None:
        with self.site.lock:
            self.site.requests.append((self.path, self.headers.get("Range", ""), nbytes))


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Say nothing: clients that were told nonsense close the connection."""


@contextmanager
def serving(folder: Path, behaviour: str = "good") -> Iterator[Site]:
    site = Site(folder, behaviour)
    handler = type("Handler", (_Handler,), {"site": site})
    server = _Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield site
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
