"""HTTP(S) range reads; each response must be the requested range of the same file version."""

import re
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import urljoin, urlsplit

from ckptool.errors import ReadError
from ckptool.formats.remote import BLOCK, MissingFileError
from ckptool.locations import RemotePath

_TIMEOUT: Final = (10, 30)
"""Timeouts in seconds: to connect, and between received bytes."""
_TRIES: Final = 3
_PAUSE: Final = 0.5
_REDIRECTS: Final = 10
_BUSY: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_RANGE: Final = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")
_EMPTY: Final = re.compile(r"bytes \*/0+")
_HEADERS: Final = {"Accept-Encoding": "identity", "User-Agent": "ckptool"}
_SENT_WHOLE: Final = "the server does not answer range requests: download the file first"
_DENIED: Final = "give a password in ~/.netrc or the URL, or use a signed URL that has not expired"


class _PassingError(Exception):
    """Failure that may not occur on retry."""


class Web:
    """HTTP server: reads files by range; cannot list folders."""

    def __init__(self, path: RemotePath) -> None:
        try:
            import requests
        except ImportError as error:
            reason = "https needs a package that is not installed: pip install 'ckptool[remote]'"
            raise ReadError(path, reason) from error
        self._requests = requests
        self._idle: deque[Any] = deque()
        """requests sessions (one open connection each) that no thread is using."""

    def open(self, path: RemotePath) -> "WebFile":
        """Request the first bytes; the response gives the file's size and identity.

        Raises:
            ReadError: the server cannot be reached, refuses, or does not support ranges.
        """
        headers, first, nbytes = self.get(path, 0, BLOCK)
        return WebFile(self, path, nbytes, first, headers)

    def is_directory(self, path: RemotePath) -> bool:
        """Whether the URL path ends in a slash."""
        return path.plain.endswith("/")

    def names_in(self, path: RemotePath) -> list[str]:
        """Raise ReadError: HTTP cannot list folders."""
        reason = (
            f"{path.scheme} cannot list a folder: name its .index.json, its .metadata, or a file"
        )
        raise ReadError(path, reason)

    def get(
        self, path: RemotePath, offset: int, nbytes: int
    ) -> tuple[Mapping[str, str], bytes, int]:
        """Return headers, bytes, and size of the whole file; up to 3 attempts with backoff.

        Raises:
            ReadError: the server refuses, or all attempts fail.
        """
        reason = ""
        for attempt in range(_TRIES):
            if attempt:
                time.sleep(_PAUSE * 2**attempt)
            try:
                with self._answer(path, offset, nbytes) as answer:
                    return _body(path, answer, offset, nbytes)
            except _PassingError as error:
                reason = str(error)
        raise ReadError(path, f"{reason}; tried {_TRIES} times")

    @contextmanager
    def _answer(self, path: RemotePath, offset: int, nbytes: int) -> Iterator[Any]:
        """Yield the response to a range request, following up to 10 redirects."""
        errors, url, session = self._requests.exceptions, path.url, self._session()
        headers = {**_HEADERS, "Range": f"bytes={offset}-{offset + nbytes - 1}"}
        for _ in range(_REDIRECTS):
            try:
                answer = session.get(
                    url, headers=headers, timeout=_TIMEOUT, stream=True, allow_redirects=False
                )
            except errors.ConnectionError as error:
                raise _unconnected(path, error) from None
            except errors.Timeout:
                raise _PassingError(f"no answer within {_TIMEOUT[1]} seconds") from None
            except (errors.RequestException, ValueError):
                raise ReadError(path, "is no URL that can be asked for") from None
            with answer:
                if not answer.is_redirect:
                    yield answer
                    break
                url = _followed(path, url, answer.headers["Location"])
        else:
            raise ReadError(path, f"was redirected {_REDIRECTS} times")
        self._idle.append(session)

    def _session(self) -> Any:
        try:
            return self._idle.pop()
        except IndexError:
            return self._requests.Session()


class WebFile:
    """File identified by the headers of its first response."""

    def __init__(
        self, web: Web, path: RemotePath, nbytes: int, first: bytes, headers: Mapping[str, str]
    ) -> None:
        self.nbytes = nbytes
        self.first = first
        self._web = web
        self._path = path
        self._headers = headers

    def fetch(self, offset: int, nbytes: int) -> bytes:
        """Return exactly these bytes.

        Raises:
            ReadError: the request fails, or the file changed since it was opened.
        """
        headers, data, total = self._web.get(self._path, offset, nbytes)
        if total != self.nbytes or not _same(self._headers, headers):
            raise ReadError(self._path, "was changed while it was read: run it again")
        return data

    def check(self) -> None:
        """Do nothing: every response was compared already."""


def _same(before: Mapping[str, str], now: Mapping[str, str]) -> bool:
    """Whether ETag, else Last-Modified, agree; True if the headers have neither."""
    for name in ("ETag", "Last-Modified"):
        if before.get(name) and now.get(name):
            return before[name] == now[name]
    return True


def _body(
    path: RemotePath, answer: Any, offset: int, nbytes: int
) -> tuple[Mapping[str, str], bytes, int]:
    """Return headers, bytes and total size of a response, checked against the requested range."""
    status, headers = answer.status_code, answer.headers
    if status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        if not offset and _EMPTY.fullmatch(headers.get("Content-Range", "")):
            return headers, b"", 0
        raise ReadError(path, "was changed while it was read: run it again")
    if status != HTTPStatus.PARTIAL_CONTENT:
        raise _refused(path, status)
    if headers.get("Content-Encoding", "identity") != "identity":
        raise ReadError(path, "the server compresses what it sends: download the file first")
    found = _RANGE.fullmatch(headers.get("Content-Range", "").strip())
    if found is None:
        raise ReadError(path, f"{_SENT_WHOLE} (it does not say which bytes of how many it sent)")
    first, last, total = map(int, found.groups())
    if first != offset or last != min(offset + nbytes, total) - 1:
        raise ReadError(
            path,
            f"the server sent bytes {first} to {last} of {total} where {offset} to "
            f"{offset + nbytes - 1} were asked for: download the file first",
        )
    return headers, _read(path, answer, last - first + 1), total


def _read(path: RemotePath, answer: Any, nbytes: int) -> bytes:
    from urllib3.exceptions import HTTPError

    try:
        data: bytes = answer.raw.read(nbytes + 1, decode_content=False)
    except (HTTPError, OSError):
        raise _PassingError(f"the connection was cut before all {nbytes} bytes came") from None
    if len(data) > nbytes:
        raise ReadError(path, f"the server sent more than the {nbytes} bytes it spoke of")
    if len(data) < nbytes:
        raise _PassingError(f"the connection was cut after {len(data)} of {nbytes} bytes")
    return data


def _refused(path: RemotePath, status: int) -> Exception:
    phrase = next((s.phrase for s in HTTPStatus if s == status), "")
    words = f"{status} {phrase}".strip()
    if status in _BUSY:
        return _PassingError(f"the server answers {words}")
    if status == HTTPStatus.OK:
        return ReadError(path, _SENT_WHOLE)
    if status in {HTTPStatus.NOT_FOUND, HTTPStatus.GONE}:
        return MissingFileError(path, f"no such file ({words})")
    if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        return ReadError(path, f"the server refuses it ({words}): {_DENIED}")
    return ReadError(path, f"the server answers {words}")


def _followed(path: RemotePath, url: str, place: str) -> str:
    """Return the URL of a redirect; reject other schemes, and https to http."""
    target = urljoin(url, place)
    before, after = urlsplit(url).scheme, urlsplit(target).scheme
    if after not in {"http", "https"} or (before == "https" and after == "http"):
        reason = f"is redirected from {before} to {after or 'nowhere'}, which is not followed"
        raise ReadError(path, reason)
    return target


def _unconnected(path: RemotePath, error: BaseException) -> Exception:
    """Return the error for a failed connection, without the URL, which may hold a signature."""
    from urllib3.exceptions import (
        ConnectTimeoutError,
        NameResolutionError,
        NewConnectionError,
        SSLError,
    )

    host = urlsplit(path.url).hostname or "the server"
    for cause in _causes(error):
        if isinstance(cause, NameResolutionError):
            return ReadError(path, f"there is no host {host}")
        if isinstance(cause, NewConnectionError):
            why = next((c.strerror for c in _causes(cause) if isinstance(c, OSError)), None)
            return ReadError(path, f"{host} cannot be reached: {why or 'no connection'}")
        if isinstance(cause, ConnectTimeoutError):
            return _PassingError(f"{host} cannot be reached within {_TIMEOUT[0]} seconds")
        if isinstance(cause, SSLError):
            return ReadError(path, f"the certificate of {host} is not trusted")
    return _PassingError(f"{host} closed the connection")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and its causes: `args`, `reason`, `__cause__` and `__context__`."""
    todo, seen = [error], set[int]()
    while todo:
        one = todo.pop(0)
        if id(one) not in seen:
            seen.add(id(one))
            yield one
            inner = (*one.args, getattr(one, "reason", None), one.__cause__, one.__context__)
            todo += [e for e in inner if isinstance(e, BaseException)]
