"""Path or URL given by the user -> Location: a local Path or a RemotePath."""

import re
from abc import ABC
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, unquote, urlsplit

_QUERY: Final = r"(?<=[\w/.%-])\?[^\s'\"<>]*=[^\s'\"<>]*"
_USER: Final = r"(?<=://)[^/@\s'\"]*@"
_WEB: Final = frozenset({"http", "https"})


class Visit:
    """Connections and cached answers shared by the remote locations of one command or call.

    Locations derived from one another (`parent`, `/`) share it.
    """

    __slots__ = ("session",)

    def __init__(self) -> None:
        self.session: object = None
        """Session of `formats.remote`; None before the first request."""


class RemotePath:
    """A remote file or folder: `s3://bucket/key`.

    Has the subset of pathlib that readers use, but is not an `os.PathLike`, so `open()` rejects it.
    `str()` masks passwords and queries, which carry signatures; `url` contains them.
    """

    __slots__ = ("_query", "url", "visit")

    def __init__(self, url: str, visit: Visit | None = None) -> None:
        scheme, _, rest = url.partition("://")
        self.visit = visit or Visit()
        self._query = ""
        if scheme.lower() in _WEB:
            # A fragment is never sent to the server; a query is not part of the file's name.
            rest, mark, query = rest.partition("#")[0].partition("?")
            self._query = mark + query
        self.url = f"{scheme.lower()}://{rest}{self._query}"

    @property
    def scheme(self) -> str:
        return self.url.partition(":")[0]

    @property
    def is_web(self) -> bool:
        return self.scheme in _WEB

    @property
    def plain(self) -> str:
        """URL without password and query; configuration globs match against it."""
        return re.sub(_USER, "", self._bare, count=1) if self._has_user else self._bare

    @property
    def name(self) -> str:
        name = self._bare.partition("://")[2].rstrip("/").rpartition("/")[2]
        return unquote(name) if self.is_web else name

    @property
    def suffix(self) -> str:
        stem, dot, suffix = self.name.rpartition(".")
        return dot + suffix if stem and suffix else ""

    @property
    def parent(self) -> "RemotePath":
        start, slashes, rest = self._bare.partition("://")
        above = rest.rstrip("/").rpartition("/")[0] or rest
        return RemotePath(start + slashes + above + self._query, self.visit)

    def __truediv__(self, name: str) -> "RemotePath":
        step = quote(name) if self.is_web else name
        return RemotePath(f"{self._bare.rstrip('/')}/{step}{self._query}", self.visit)

    def with_name(self, name: str) -> "RemotePath":
        return self.parent / name

    def __str__(self) -> str:
        shown = self._bare
        if self._has_user:
            shown = re.sub(_USER, "***@", shown, count=1)
        return shown + ("?***" if self._query else "")

    def __repr__(self) -> str:
        return f"RemotePath({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemotePath) and self.url == other.url

    def __hash__(self) -> int:
        return hash(self.url)

    @property
    def _bare(self) -> str:
        return self.url.removesuffix(self._query)

    @property
    def _has_user(self) -> bool:
        """Whether the URL contains user information; the @ of `hf://org/repo@revision` is none."""
        user, at, _ = self._bare.partition("://")[2].partition("/")[0].rpartition("@")
        return bool(at) and (":" in user or self.scheme != "hf")


if TYPE_CHECKING:
    Location = Path | RemotePath
else:

    class Location(ABC):  # noqa: B024 (never instantiated)
        """Path or RemotePath: one class, since msgspec cannot decode a union of custom types."""

    Location.register(Path)
    Location.register(RemotePath)


def locate(place: str | Location) -> Location:
    """Parse a path or URL: a RemotePath if it names a protocol other than file://, else a Path."""
    if not isinstance(place, str):
        return place
    if not is_remote(place):
        return Path(place)
    if place[:7].lower() == "file://":
        return Path(unquote(urlsplit(place).path))
    return RemotePath(place)


def within(folder: Path, place: Location) -> Location:
    """Resolve a relative path in `folder`; remote and absolute locations are returned unchanged."""
    return place if isinstance(place, RemotePath) else folder / place


def is_remote(text: str) -> bool:
    r"""Whether `text` starts with a protocol, "s3://" or "https://".

    A single letter is a Windows drive: `C:\x`, `C:/x` and even `C://x` are paths.
    """
    scheme, mark, _ = text.partition("://")
    plain = scheme.replace("+", "").replace("-", "").replace(".", "")
    return bool(mark) and len(scheme) > 1 and plain.isascii() and plain.isalnum()


def masked(text: str) -> str:
    """Mask passwords and signed queries of URLs in foreign error messages."""
    return re.sub(_USER, "***@", re.sub(_QUERY, "?***", text))
