"""HTTP(S) range reads; each response must be the requested range of the same file version."""

import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from http import HTTPStatus
from threading import Thread
from typing import Any, Final, TypeVar
from urllib.parse import urljoin, urlsplit

from ckptool.errors import ReadError
from ckptool.formats.files.remote import MIN_REQUEST_BYTES, MissingFileError
from ckptool.locations import RemotePath

T = TypeVar("T")

_TIMEOUT: Final = (10, 30)
"""Timeouts in seconds: to connect, and between received bytes."""
_MIN_SECONDS: Final = 60.0
"""Seconds that one request may take in all, redirects and headers included, whatever it is for."""
_MIN_BYTES_PER_SECOND: Final = 50_000
"""Speed below which a large range takes longer than it may."""
_MAX_TRIES: Final = 3
_PAUSE: Final = 0.5
_MAX_REDIRECTS: Final = 10
_RETRIED_STATUSES: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_CONTENT_RANGE: Final = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})")
_EMPTY_CONTENT_RANGE: Final = re.compile(r"bytes \*/0+")
_REQUEST_HEADERS: Final = {"Accept-Encoding": "identity", "User-Agent": "ckptool"}
_NO_RANGES: Final = "the server does not support range requests: download the file first"
_CREDENTIALS_HINT: Final = (
    "give a password in ~/.netrc or the URL, or use a signed URL that has not expired"
)


class _TransientError(Exception):
    """Failure that may not occur on retry."""


class _TimeLimitError(Exception):
    """A request takes longer than it may."""


class HttpServer:
    """HTTP server: reads files by range; cannot list folders."""

    def __init__(self, path: RemotePath) -> None:
        try:
            import requests
        except ImportError as error:
            reason = "https needs a package that is not installed: pip install 'ckptool[remote]'"
            raise ReadError(path, reason) from error
        self._requests = requests
        self._idle_sessions: deque[Any] = deque()
        """requests sessions (one open connection each) that no thread is using."""

    def open_file(self, path: RemotePath) -> "HttpFile":
        """Request the first bytes; the response gives the file's size and identity.

        Raises:
            ReadError: the server cannot be reached, refuses, or does not support ranges.
        """
        headers, first_bytes, nbytes = self.request_range(path, 0, MIN_REQUEST_BYTES)
        return HttpFile(self, path, nbytes, first_bytes, headers)

    def is_directory(self, path: RemotePath) -> bool:
        """Whether the URL path ends in a slash."""
        return path.url_without_secrets.endswith("/")

    def list_names(self, path: RemotePath) -> list[str]:
        """Raise ReadError: HTTP cannot list folders."""
        reason = (
            f"{path.scheme} cannot list a folder: give its .index.json, its .metadata, or a file"
        )
        raise ReadError(path, reason)

    def request_range(
        self, path: RemotePath, offset: int, nbytes: int
    ) -> tuple[Mapping[str, str], bytes, int]:
        """Return headers, bytes, and size of the whole file; up to 3 attempts with backoff.

        Raises:
            ReadError: the server refuses, all attempts fail, or one takes too long in all: a server
                that sends a byte now and then never exceeds the time between two of them.
        """
        reason = ""
        seconds = _MIN_SECONDS + nbytes / _MIN_BYTES_PER_SECOND
        for attempt in range(_MAX_TRIES):
            if attempt:
                time.sleep(_PAUSE * 2**attempt)
            try:
                return _run_within(seconds, lambda: self._request_range_once(path, offset, nbytes))
            except _TimeLimitError:
                reason = f"{nbytes} bytes were not received within {seconds:.0f} seconds"
                raise ReadError(path, f"{reason}: download the file first") from None
            except _TransientError as error:
                reason = str(error)
        raise ReadError(path, f"{reason}; tried {_MAX_TRIES} times")

    def _request_range_once(
        self, path: RemotePath, offset: int, nbytes: int
    ) -> tuple[Mapping[str, str], bytes, int]:
        with self._open_response(path, offset, nbytes) as response:
            return _read_response(path, response, offset, nbytes)

    @contextmanager
    def _open_response(self, path: RemotePath, offset: int, nbytes: int) -> Iterator[Any]:
        """Yield the response to a range request, following up to 10 redirects."""
        errors, url, session = self._requests.exceptions, path.url, self._take_session()
        headers = {**_REQUEST_HEADERS, "Range": f"bytes={offset}-{offset + nbytes - 1}"}
        for _ in range(_MAX_REDIRECTS):
            try:
                response = session.get(
                    url, headers=headers, timeout=_TIMEOUT, stream=True, allow_redirects=False
                )
            except errors.ConnectionError as error:
                raise _build_connection_error(path, error) from None
            except errors.Timeout:
                raise _TransientError(f"no response within {_TIMEOUT[1]} seconds") from None
            except (errors.RequestException, ValueError):
                raise ReadError(path, "is not a valid URL") from None
            with response:
                if not response.is_redirect:
                    yield response
                    break
                url = _resolve_redirect(path, url, response.headers["Location"])
        else:
            raise ReadError(path, f"was redirected {_MAX_REDIRECTS} times")
        self._idle_sessions.append(session)

    def _take_session(self) -> Any:
        try:
            return self._idle_sessions.pop()
        except IndexError:
            return self._requests.Session()


class HttpFile:
    """File identified by the headers of its first response."""

    def __init__(
        self,
        server: HttpServer,
        path: RemotePath,
        nbytes: int,
        first_bytes: bytes,
        headers: Mapping[str, str],
    ) -> None:
        self.nbytes = nbytes
        self.first_bytes = first_bytes
        self._server = server
        self._path = path
        self._headers = headers

    def fetch_range(self, offset: int, nbytes: int) -> bytes:
        """Return exactly these bytes.

        Raises:
            ReadError: the request fails, or the file changed since it was opened.
        """
        headers, data, total = self._server.request_range(self._path, offset, nbytes)
        if total != self.nbytes or not _is_same_state(self._headers, headers):
            raise ReadError(self._path, "changed while it was read: run the command again")
        return data

    def check_unchanged(self) -> None:
        """Compare the first bytes again if no header names the state of the file.

        Every response was compared already by ETag or Last-Modified. Without them a change behind
        the first bytes that keeps the size cannot be found.

        Raises:
            ReadError: the file changed since it was opened.
        """
        if _has_validator(self._headers) or not self.first_bytes:
            return
        if self.fetch_range(0, len(self.first_bytes)) != self.first_bytes:
            raise ReadError(self._path, "changed while it was read: run the command again")


_VALIDATORS: Final = ("ETag", "Last-Modified")
"""Headers that name the state of a file."""


def _has_validator(headers: Mapping[str, str]) -> bool:
    return any(headers.get(name) for name in _VALIDATORS)


def _is_same_state(old_headers: Mapping[str, str], new_headers: Mapping[str, str]) -> bool:
    """Whether ETag, else Last-Modified, agree; True if the old headers have neither.

    A header that is no longer sent is a change: what it stood for is not known any more.
    """
    for name in _VALIDATORS:
        if old_headers.get(name):
            return old_headers[name] == new_headers.get(name)
    return True


def _run_within(seconds: float, function: Callable[[], T]) -> T:
    """Return what `function` returns, computed in a thread; later, the thread is abandoned.

    Raises:
        _TimeLimitError: it takes longer than `seconds`; its own exceptions propagate.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:  # noqa: BLE001 - raised again below
            future.set_exception(error)

    Thread(target=run, daemon=True).start()
    try:
        return future.result(seconds)
    except TimeoutError:
        raise _TimeLimitError from None


def _read_response(
    path: RemotePath, response: Any, offset: int, nbytes: int
) -> tuple[Mapping[str, str], bytes, int]:
    """Return headers, bytes and total size of a response, checked against the requested range."""
    status, headers = response.status_code, response.headers
    if status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        if not offset and _EMPTY_CONTENT_RANGE.fullmatch(headers.get("Content-Range", "")):
            return headers, b"", 0
        raise ReadError(path, "changed while it was read: run the command again")
    if status != HTTPStatus.PARTIAL_CONTENT:
        raise _build_status_error(path, status)
    if headers.get("Content-Encoding", "identity") != "identity":
        raise ReadError(path, "the server compresses its responses: download the file first")
    match = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", "").strip())
    if match is None:
        raise ReadError(path, f"{_NO_RANGES} (its response does not say which bytes it contains)")
    first_position, last_position, total = map(int, match.groups())
    if first_position != offset or last_position != min(offset + nbytes, total) - 1:
        raise ReadError(
            path,
            f"the server sent bytes {first_position} to {last_position} of {total} instead of "
            f"{offset} to {offset + nbytes - 1}: download the file first",
        )
    return headers, _read_body(path, response, last_position - first_position + 1), total


def _read_body(path: RemotePath, response: Any, nbytes: int) -> bytes:
    from urllib3.exceptions import HTTPError

    try:
        data: bytes = response.raw.read(nbytes + 1, decode_content=False)
    except (HTTPError, OSError):
        raise _TransientError(
            f"the connection was closed before all {nbytes} bytes were received"
        ) from None
    if len(data) > nbytes:
        raise ReadError(path, f"the server sent more than the {nbytes} bytes it announced")
    if len(data) < nbytes:
        raise _TransientError(f"the connection was closed after {len(data)} of {nbytes} bytes")
    return data


def _build_status_error(path: RemotePath, status: int) -> Exception:
    phrase = next((member.phrase for member in HTTPStatus if member == status), "")
    status_text = f"{status} {phrase}".strip()
    if status in _RETRIED_STATUSES:
        return _TransientError(f"the server responded {status_text}")
    if status == HTTPStatus.OK:
        return ReadError(path, _NO_RANGES)
    if status in {HTTPStatus.NOT_FOUND, HTTPStatus.GONE}:
        return MissingFileError(path, f"no such file ({status_text})")
    if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        return ReadError(path, f"the server refused access ({status_text}): {_CREDENTIALS_HINT}")
    return ReadError(path, f"the server responded {status_text}")


def _resolve_redirect(path: RemotePath, url: str, location: str) -> str:
    """Return the URL of a redirect; reject other schemes, and https to http."""
    target = urljoin(url, location)
    old_scheme, new_scheme = urlsplit(url).scheme, urlsplit(target).scheme
    if new_scheme not in {"http", "https"} or (old_scheme == "https" and new_scheme == "http"):
        reason = (
            f"is redirected from {old_scheme} to {new_scheme or 'nowhere'}, which is not followed"
        )
        raise ReadError(path, reason)
    return target


def _build_connection_error(path: RemotePath, error: BaseException) -> Exception:
    """Return the error for a failed connection, without the URL, which may hold a signature."""
    from urllib3.exceptions import (
        ConnectTimeoutError,
        NameResolutionError,
        NewConnectionError,
        SSLError,
    )

    host = urlsplit(path.url).hostname or "the server"
    for cause in _iter_causes(error):
        if isinstance(cause, NameResolutionError):
            return ReadError(path, f"there is no host {host}")
        if isinstance(cause, NewConnectionError):
            reason = next(
                (
                    inner_error.strerror
                    for inner_error in _iter_causes(cause)
                    if isinstance(inner_error, OSError)
                ),
                None,
            )
            return ReadError(path, f"{host} cannot be reached: {reason or 'no connection'}")
        if isinstance(cause, ConnectTimeoutError):
            return _TransientError(f"{host} cannot be reached within {_TIMEOUT[0]} seconds")
        if isinstance(cause, SSLError):
            return ReadError(path, f"the certificate of {host} is not trusted")
    return _TransientError(f"{host} closed the connection")


def _iter_causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and its causes: `args`, `reason`, `__cause__` and `__context__`."""
    queue, visited_ids = [error], set[int]()
    while queue:
        current = queue.pop(0)
        if id(current) not in visited_ids:
            visited_ids.add(id(current))
            yield current
            candidates = (
                *current.args,
                getattr(current, "reason", None),
                current.__cause__,
                current.__context__,
            )
            queue += [candidate for candidate in candidates if isinstance(candidate, BaseException)]
