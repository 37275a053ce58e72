"""Range reads through fsspec (s3, gs, hf, memory ...); changed files are detected."""

import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from ckptool.errors import ReadError
from ckptool.formats.files.remote import MissingFileError
from ckptool.locations import RemotePath, mask_credentials

_DEFAULT_OPTIONS: Final[Mapping[str, Mapping[str, Any]]] = {
    "s3": {"config_kwargs": {"connect_timeout": 10, "read_timeout": 30}},
}
"""Storage options by protocol; fsspec's own configuration takes precedence."""
_IDENTITY_FIELDS: Final = (
    "size", "ETag", "etag", "md5Hash", "content_md5", "generation", "VersionId", "version_id",
    "LastModified", "last_modified", "mtime", "updated", "created", "blob_id", "oid", "sha256",
    "lfs", "xet_hash",
)  # fmt: skip
"""Fields of fsspec's `info` that change when the content changes."""
_FOREIGN_ERRORS: Final = (
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
_EXTRA_PROTOCOLS: Final = frozenset({"s3", "s3a", "hf", "memory"})
"""Protocols whose packages the extra `ckptool[remote]` installs."""
_AWS_HINT: Final = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; for a public bucket "
    "FSSPEC_S3_ANON=true"
)
_CREDENTIAL_HINTS: Final = {
    "s3": _AWS_HINT,
    "s3a": _AWS_HINT,
    "gs": "run `gcloud auth application-default login`; a public bucket: FSSPEC_GS_TOKEN=anon",
    "hf": "run `hf auth login`, or set HF_TOKEN",
}


class FsspecFileSystem:
    """fsspec file system, not shared between sessions, so that its cache is never stale."""

    def __init__(self, path: RemotePath) -> None:
        self._infos: dict[str, Mapping[str, Any]] = {}
        try:
            from fsspec.core import url_to_fs
        except ImportError as error:
            raise _build_missing_package_error(path) from error
        from fsspec.config import conf

        user_options = conf.get(path.scheme, {})
        options = {
            k: v for k, v in _DEFAULT_OPTIONS.get(path.scheme, {}).items() if k not in user_options
        }
        with _translate_errors(path):
            self.fs: Any = url_to_fs(path.url, skip_instance_cache=True, **options)[0]

    def open_file(self, path: RemotePath) -> "FsspecFile":
        """Look up size and identity of a file.

        Raises:
            ReadError: it does not exist, is a folder, has no known size, or is not readable.
        """
        info = self._get_info(path)
        if info.get("type") == "directory":
            raise ReadError(path, "is a folder, not a file")
        if type(info.get("size")) is not int:
            raise ReadError(path, "its size is unknown: download it first")
        return FsspecFile(self, path, info)

    def is_directory(self, path: RemotePath) -> bool:
        """Whether it is a folder or a key prefix; False if it does not exist."""
        try:
            return self._get_info(path).get("type") == "directory"
        except MissingFileError:
            return False

    def list_names(self, path: RemotePath) -> list[str]:
        """Return the names in a folder, unsorted."""
        with _translate_errors(path):
            entries = self.fs.ls(self.strip_protocol(path), detail=False)
        directory_key = self.strip_protocol(path).rstrip("/")
        names = (str(name).rstrip("/") for name in entries)
        return [name.rpartition("/")[2] for name in names if name != directory_key]

    def strip_protocol(self, path: RemotePath) -> str:
        """Return the file system's own path, without the protocol."""
        key: str = self.fs._strip_protocol(path.url)  # noqa: SLF001 - fsspec's own hook
        return key

    def fetch_info(self, path: RemotePath) -> Mapping[str, Any]:
        """Return fsspec's `info` of a file, bypassing caches."""
        key = self.strip_protocol(path)
        with _translate_errors(path):
            self.fs.invalidate_cache(key)
            info: Mapping[str, Any] = self.fs.info(key)
        return info

    def _get_info(self, path: RemotePath) -> Mapping[str, Any]:
        if path.url not in self._infos:
            with _translate_errors(path):
                self._infos[path.url] = self.fs.info(self.strip_protocol(path))
        return self._infos[path.url]


class FsspecFile:
    """File identified by its first fsspec `info`."""

    first_bytes = b""

    def __init__(
        self, file_system: FsspecFileSystem, path: RemotePath, info: Mapping[str, Any]
    ) -> None:
        self.nbytes: int = info["size"]
        self._file_system = file_system
        self._path = path
        self._identity = _extract_identity(info)
        self._needs_check = False

    def fetch_range(self, offset: int, nbytes: int) -> bytes:
        """Return exactly these bytes.

        Raises:
            ReadError: the store returns other lengths or fails.
        """
        fs, self._needs_check = self._file_system.fs, True
        # Synchronous file systems read through a cache that fetches far more than requested.
        cache = {} if fs.async_impl or self._path.scheme == "memory" else {"cache_type": "none"}
        with _translate_errors(self._path):
            data: bytes = fs.cat_file(
                self._file_system.strip_protocol(self._path),
                start=offset,
                end=offset + nbytes,
                **cache,
            )
        if len(data) == nbytes:
            return data
        self.check_unchanged()
        reason = f"{len(data)} bytes were received instead of {nbytes}: download it first"
        raise ReadError(self._path, reason)

    def check_unchanged(self) -> None:
        """Check that the file is unchanged since it was opened, if anything was fetched.

        Raises:
            ReadError: it was changed.
        """
        if self._needs_check:
            self._needs_check = False
            new_identity = _extract_identity(self._file_system.fetch_info(self._path))
            # Listings and `info` give different fields: compare only those present in both.
            if any(
                new_identity.get(name, value) != value for name, value in self._identity.items()
            ):
                raise ReadError(self._path, "changed while it was read: run the command again")


def _extract_identity(info: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(info[name]) for name in _IDENTITY_FIELDS if info.get(name) is not None}


@contextmanager
def _translate_errors(path: RemotePath) -> Iterator[None]:
    """Convert exceptions of fsspec and its packages to a one-line ReadError, credentials masked."""
    try:
        yield
    except FileNotFoundError:
        raise MissingFileError(path, "no such file") from None
    except ImportError as error:
        raise _build_missing_package_error(path, str(error)) from None
    except ReadError:
        raise
    except _list_error_types() as error:
        raise ReadError(path, _explain_error(path, error)) from None


def _list_error_types() -> tuple[type[Exception], ...]:
    """Return the exception classes to catch, including those of packages imported so far."""
    error_types = [getattr(sys.modules.get(module), name, None) for module, name in _FOREIGN_ERRORS]
    return (OSError, ValueError, *(error for error in error_types if error is not None))


def _build_missing_package_error(path: RemotePath, message: str = "") -> ReadError:
    """Return the error for a missing package; fsspec's message names those outside the extra."""
    instruction = (
        message
        if message and path.scheme not in _EXTRA_PROTOCOLS
        else "pip install 'ckptool[remote]'"
    )
    return ReadError(path, f"{path.scheme}:// needs a package that is not installed: {instruction}")


def _explain_error(path: RemotePath, error: BaseException) -> str:
    message = mask_credentials(" ".join(str(error).split())) or type(error).__name__
    is_denied = isinstance(error, PermissionError) or "redential" in type(error).__name__ + message
    if is_denied or re.search(r"\b40[13]\b|Forbidden|Access Denied", message):
        hint = _CREDENTIAL_HINTS.get(path.scheme, "see the documentation of the protocol's package")
        return f"the store refused access ({message[:_MAX_MESSAGE_LENGTH]}): {hint}"
    if isinstance(error, ValueError) and message.startswith("Protocol not known"):
        return f"{path.scheme}:// is not a protocol supported by fsspec"
    if isinstance(error, TimeoutError):
        return "the store did not respond in time"
    return message[:_MAX_MESSAGE_LENGTH]


_MAX_MESSAGE_LENGTH: Final = 300
