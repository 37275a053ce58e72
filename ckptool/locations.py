"""Path or URL given by the user -> Location: a local Path or a RemotePath."""

import os
import re
import shlex
import stat
from abc import ABC
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, unquote, urlsplit

_QUERY_PATTERN: Final = r"(?<=[\w/.%-])\?[^\s'\"<>]*=[^\s'\"<>]*"
_USERINFO_PATTERN: Final = r"(?<=://)[^/@\s'\"]*@"
_MODULE_REFERENCE: Final = re.compile(
    r"(?:[^:]+\.py|[A-Za-z_][\w.]*):[A-Za-z_][\w.]*(?:[(\[].*)?", re.ASCII | re.DOTALL
)
_NO_WAITING: Final = getattr(os, "O_NONBLOCK", 0)
_MAX_SMALL_FILE_BYTES: Final = 256 << 20
_WEB_SCHEMES: Final = frozenset({"http", "https"})


def suggest_module_option(word: str) -> str:
    """Return where a word such as "net.py:Net" or "net.py" belongs, "" if it has another form."""
    reference = f"{word}:NAME" if word.endswith(".py") else word
    if not _MODULE_REFERENCE.fullmatch(reference):
        return ""
    return f"a module is given with -m {shlex.quote(reference)}"


class RemoteContext:
    """Connections and cached answers shared by the remote locations of one command or call.

    Locations derived from one another (`parent`, `/`) share it.
    """

    __slots__ = ("session",)

    def __init__(self) -> None:
        self.session: object = None
        """Session of `formats.remote`; None before the first request."""

    def __reduce__(self) -> tuple[object, ...]:
        """Leave the session out: another process has connections of its own."""
        return type(self), ()


class RemotePath:
    """A remote file or folder: `s3://bucket/key`.

    Has the subset of pathlib that readers use, but is not an `os.PathLike`, so `open()` rejects it.
    `str()` masks passwords and queries, which carry signatures; `url` contains them.
    """

    __slots__ = ("_query", "context", "url")

    def __init__(self, url: str, context: RemoteContext | None = None) -> None:
        scheme, _, remainder = url.partition("://")
        self.context = context or RemoteContext()
        self._query = ""
        if scheme.lower() in _WEB_SCHEMES:
            # A fragment is never sent to the server; a query is not part of the file's name.
            remainder, separator, query = remainder.partition("#")[0].partition("?")
            self._query = separator + query
        self.url = f"{scheme.lower()}://{remainder}{self._query}"

    @property
    def scheme(self) -> str:
        return self.url.partition(":")[0]

    @property
    def is_web(self) -> bool:
        return self.scheme in _WEB_SCHEMES

    @property
    def url_without_secrets(self) -> str:
        """URL without password and query; configuration globs match against it."""
        return (
            re.sub(_USERINFO_PATTERN, "", self._url_without_query, count=1)
            if self._has_user
            else self._url_without_query
        )

    @property
    def name(self) -> str:
        name = self._url_without_query.partition("://")[2].rstrip("/").rpartition("/")[2]
        return unquote(name) if self.is_web else name

    @property
    def suffix(self) -> str:
        stem, dot, suffix = self.name.rpartition(".")
        return dot + suffix if stem and suffix else ""

    @property
    def parent(self) -> "RemotePath":
        scheme, slashes, path = self._url_without_query.partition("://")
        parent_path = path.rstrip("/").rpartition("/")[0] or path
        return RemotePath(scheme + slashes + parent_path + self._query, self.context)

    def __truediv__(self, name: str) -> "RemotePath":
        step = quote(name) if self.is_web else name
        return RemotePath(
            f"{self._url_without_query.rstrip('/')}/{step}{self._query}", self.context
        )

    def with_name(self, name: str) -> "RemotePath":
        return self.parent / name

    def __str__(self) -> str:
        text = self._url_without_query
        if self._has_user:
            text = re.sub(_USERINFO_PATTERN, "***@", text, count=1)
        return text + ("?***" if self._query else "")

    def __repr__(self) -> str:
        return f"RemotePath({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemotePath) and self.url == other.url

    def __hash__(self) -> int:
        return hash(self.url)

    @property
    def _url_without_query(self) -> str:
        return self.url.removesuffix(self._query)

    @property
    def _has_user(self) -> bool:
        """Whether the URL contains user information; the @ of `hf://org/repo@revision` is none."""
        user, separator, _ = (
            self._url_without_query.partition("://")[2].partition("/")[0].rpartition("@")
        )
        return bool(separator) and (":" in user or self.scheme != "hf")


if TYPE_CHECKING:
    Location = Path | RemotePath
else:

    class Location(ABC):  # noqa: B024 (never instantiated)
        """Path or RemotePath: one class, since msgspec cannot decode a union of custom types."""

    Location.register(Path)
    Location.register(RemotePath)


def parse_location(location: str | Location) -> Location:
    """Parse a path or URL: a RemotePath, or a Path if it has no protocol, file:// or local://.

    local:// is fsspec's: as a remote path it would match none of a policy's globs.
    """
    if not isinstance(location, str):
        return location
    if not is_remote(location):
        return Path(location)
    if location[:7].lower() == "file://":
        return Path(unquote(urlsplit(location).path))
    if location[:8].lower() == "local://":
        return Path(location[8:])
    return RemotePath(location)


def resolve_in(folder: Path, location: Location) -> Location:
    """Resolve a relative path in `folder`; remote and absolute locations are returned unchanged."""
    return location if isinstance(location, RemotePath) else folder / location


def read_small_file(path: Path) -> bytes:
    """Return the content of a file that a user names beside a checkpoint: a policy, a plan, a part.

    A pipe that nobody writes to and a device that does not end are errors.

    Raises:
        OSError: it cannot be read, or is larger than such a file can be.
    """
    with os.fdopen(os.open(path, os.O_RDONLY | _NO_WAITING), "rb") as file:
        if _NO_WAITING:
            os.set_blocking(file.fileno(), True)
        content = file.read(_MAX_SMALL_FILE_BYTES + 1)
        is_pipe = stat.S_ISFIFO(os.fstat(file.fileno()).st_mode)
    if is_pipe and not content:
        raise OSError("is a pipe that nobody writes to")
    if len(content) > _MAX_SMALL_FILE_BYTES:
        raise OSError(f"has more than {_MAX_SMALL_FILE_BYTES >> 20} MiB")
    return content


def is_remote(text: str) -> bool:
    r"""Whether `text` starts with a protocol, "s3://" or "https://".

    A single letter is a Windows drive: `C:\x`, `C:/x` and even `C://x` are paths.
    """
    scheme, separator, _ = text.partition("://")
    letters = scheme.replace("+", "").replace("-", "").replace(".", "")
    return bool(separator) and len(scheme) > 1 and letters.isascii() and letters.isalnum()


def mask_credentials(text: str) -> str:
    """Mask passwords and signed queries of URLs in foreign error messages."""
    return re.sub(_USERINFO_PATTERN, "***@", re.sub(_QUERY_PATTERN, "?***", text))


def _list_entries(location: Path) -> list[Path]:
    """Return a local location, and behind it the entries of a folder, or of that of an index."""
    try:
        if not location.is_dir() and location.suffix != ".json":
            return [location]
        folder = location if location.is_dir() else location.parent
        return [location, *sorted(folder.iterdir())]
    except (OSError, ValueError):  # it cannot be read either
        return [location]


def _list_paths(location: Path) -> list[Path]:
    """Return a local path as given, in its resolved folder, and resolved.

    A loop, and a name that no file can have (with NUL, say), as given.
    """
    path = Path(os.path.abspath(location))  # noqa: PTH100 (resolve would follow links)
    try:
        return [path, location.parent.resolve() / location.name, location.resolve()]
    except (OSError, RuntimeError, ValueError):
        return [path]


def list_glob_names(location: Location, directory: Path) -> tuple[str, ...]:
    """Return the names that globs of a configuration match, each once, the given name first.

    A link has its own name, that in the resolved folder, and that of its target. A folder, and an
    index, have the names of the files in the folder as well: they are what is read. A name is
    relative to `directory` if it is inside it; a remote location has its URL without secrets.
    """
    if isinstance(location, RemotePath):
        return (location.url_without_secrets,)
    paths = [path for entry in _list_entries(location) for path in _list_paths(entry)]
    root = directory.resolve()
    own_names = [path.relative_to(root).as_posix() for path in paths if path.is_relative_to(root)]
    far_names = [path.as_posix() for path in paths if not path.is_relative_to(root)]
    return tuple(dict.fromkeys((*(own_names or [location.as_posix()]), *far_names)))
