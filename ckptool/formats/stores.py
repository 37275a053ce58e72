"""Range reads through fsspec (s3, gs, hf, memory ...); changed files are detected."""

import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from ckptool.errors import ReadError
from ckptool.formats.remote import MissingFileError
from ckptool.locations import RemotePath, masked

_OPTIONS: Final[Mapping[str, Mapping[str, Any]]] = {
    "s3": {"config_kwargs": {"connect_timeout": 10, "read_timeout": 30}},
}
"""Storage options by protocol; fsspec's own configuration takes precedence."""
_MARKS: Final = (
    "size", "ETag", "etag", "md5Hash", "content_md5", "generation", "VersionId", "version_id",
    "LastModified", "last_modified", "mtime", "updated", "created", "blob_id", "oid", "sha256",
    "lfs", "xet_hash",
)  # fmt: skip
"""Fields of fsspec's `info` that change when the content changes."""
_FOREIGN: Final = (
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("aiohttp", "ClientError"),
    ("google.auth.exceptions", "GoogleAuthError"),
    ("gcsfs.retry", "HttpError"),
    ("azure.core.exceptions", "AzureError"),
    ("huggingface_hub.errors", "HFValidationError"),
    ("huggingface_hub.errors", "HfHubHTTPError"),
    ("httpx", "HTTPError"),
    ("httpx2", "HTTPError"),
)
"""Exception classes outside OSError, of packages that fsspec may import: (module, class)."""
_EXTRA: Final = frozenset({"s3", "s3a", "hf", "memory"})
"""Protocols whose packages the extra `ckptool[remote]` installs."""
_AWS: Final = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; for a public bucket "
    "FSSPEC_S3_ANON=true"
)
_CREDENTIALS: Final = {
    "s3": _AWS,
    "s3a": _AWS,
    "gs": "run `gcloud auth application-default login`; a public bucket: FSSPEC_GS_TOKEN=anon",
    "hf": "run `hf auth login`, or set HF_TOKEN",
}


class Store:
    """fsspec file system, not shared between sessions, so that its cache is never stale."""

    def __init__(self, path: RemotePath) -> None:
        self._infos: dict[str, Mapping[str, Any]] = {}
        try:
            from fsspec.core import url_to_fs
        except ImportError as error:
            raise _uninstalled(path) from error
        from fsspec.config import conf

        given = conf.get(path.scheme, {})
        wanted = {k: v for k, v in _OPTIONS.get(path.scheme, {}).items() if k not in given}
        with _failing(path):
            self.fs: Any = url_to_fs(path.url, skip_instance_cache=True, **wanted)[0]

    def open(self, path: RemotePath) -> "StoreFile":
        """Look up size and identity of a file.

        Raises:
            ReadError: it does not exist, is a folder, has no known size, or is not readable.
        """
        info = self._info(path)
        if info.get("type") == "directory":
            raise ReadError(path, "is a folder, not a file")
        if type(info.get("size")) is not int:
            raise ReadError(path, "its size is not known: download it first")
        return StoreFile(self, path, info)

    def is_directory(self, path: RemotePath) -> bool:
        """Whether it is a folder or a key prefix; False if it does not exist."""
        try:
            return self._info(path).get("type") == "directory"
        except MissingFileError:
            return False

    def names_in(self, path: RemotePath) -> list[str]:
        """Return the names in a folder, unsorted."""
        with _failing(path):
            found = self.fs.ls(self.key(path), detail=False)
        own = self.key(path).rstrip("/")
        names = (str(name).rstrip("/") for name in found)
        return [name.rpartition("/")[2] for name in names if name != own]

    def key(self, path: RemotePath) -> str:
        """Return the file system's own path, without the protocol."""
        key: str = self.fs._strip_protocol(path.url)  # noqa: SLF001 - fsspec's own hook
        return key

    def now(self, path: RemotePath) -> Mapping[str, Any]:
        """Return fsspec's `info` of a file, bypassing caches."""
        key = self.key(path)
        with _failing(path):
            self.fs.invalidate_cache(key)
            found: Mapping[str, Any] = self.fs.info(key)
        return found

    def _info(self, path: RemotePath) -> Mapping[str, Any]:
        if path.url not in self._infos:
            with _failing(path):
                self._infos[path.url] = self.fs.info(self.key(path))
        return self._infos[path.url]


class StoreFile:
    """File identified by its first fsspec `info`."""

    first = b""

    def __init__(self, store: Store, path: RemotePath, info: Mapping[str, Any]) -> None:
        self.nbytes: int = info["size"]
        self._store = store
        self._path = path
        self._mark = _mark(info)
        self._unchecked = False

    def fetch(self, offset: int, nbytes: int) -> bytes:
        """Return exactly these bytes.

        Raises:
            ReadError: the store returns other lengths or fails.
        """
        fs, self._unchecked = self._store.fs, True
        # Synchronous file systems read through a cache that fetches far more than requested.
        cache = {} if fs.async_impl or self._path.scheme == "memory" else {"cache_type": "none"}
        with _failing(self._path):
            data: bytes = fs.cat_file(
                self._store.key(self._path), start=offset, end=offset + nbytes, **cache
            )
        if len(data) == nbytes:
            return data
        self.check()
        reason = f"{len(data)} bytes came where {nbytes} were asked for: download it first"
        raise ReadError(self._path, reason)

    def check(self) -> None:
        """Check that the file is unchanged since it was opened, if anything was fetched.

        Raises:
            ReadError: it was changed.
        """
        if self._unchecked:
            self._unchecked = False
            now = _mark(self._store.now(self._path))
            # Listings and `info` give different fields: compare only those present in both.
            if any(now.get(name, said) != said for name, said in self._mark.items()):
                raise ReadError(self._path, "was changed while it was read: run it again")


def _mark(info: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(info[name]) for name in _MARKS if info.get(name) is not None}


@contextmanager
def _failing(path: RemotePath) -> Iterator[None]:
    """Convert exceptions of fsspec and its packages to a one-line ReadError, credentials masked."""
    try:
        yield
    except FileNotFoundError:
        raise MissingFileError(path, "no such file") from None
    except ImportError as error:
        raise _uninstalled(path, str(error)) from None
    except ReadError:
        raise
    except _errors() as error:
        raise ReadError(path, _why(path, error)) from None


def _errors() -> tuple[type[Exception], ...]:
    """Return the exception classes to catch, including those of packages imported so far."""
    found = [getattr(sys.modules.get(module), name, None) for module, name in _FOREIGN]
    return (OSError, ValueError, *(error for error in found if error is not None))


def _uninstalled(path: RemotePath, said: str = "") -> ReadError:
    """Return the error for a missing package; fsspec's message names those outside the extra."""
    way = said if said and path.scheme not in _EXTRA else "pip install 'ckptool[remote]'"
    return ReadError(path, f"{path.scheme}:// needs a package that is not installed: {way}")


def _why(path: RemotePath, error: BaseException) -> str:
    said = masked(" ".join(str(error).split())) or type(error).__name__
    denied = isinstance(error, PermissionError) or "redential" in type(error).__name__ + said
    if denied or re.search(r"\b40[13]\b|Forbidden|Access Denied", said):
        way = _CREDENTIALS.get(path.scheme, "see the documentation of the protocol's package")
        return f"the store refuses it ({said[:_SAID]}): {way}"
    if isinstance(error, ValueError) and said.startswith("Protocol not known"):
        return f"{path.scheme}:// is no protocol that fsspec knows"
    if isinstance(error, TimeoutError):
        return "the store did not answer in time"
    return said[:_SAID]


_SAID: Final = 300
