"""What a user names -> where it lies: a path of this machine, or a remote location."""

import re
from abc import ABC
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, unquote, urlsplit

_QUERY: Final = r"(?<=[\w/.%-])\?[^\s'\"<>]*=[^\s'\"<>]*"
_USER: Final = r"(?<=://)[^/@\s'\"]*@"
_WEB: Final = frozenset({"http", "https"})


class Visit:
    """What the locations of one command or call have in common: connections, and what was seen.

    Locations that are made of one another share it.
    """

    __slots__ = ("session",)

    def __init__(self) -> None:
        self.session: object = None
        """Of `formats.remote`; None until something is asked for."""


class RemotePath:
    """A file or folder that is not on this machine: `s3://bucket/key`.

    It has of pathlib what readers use, and it is no `os.PathLike`: nothing can open it by mistake.
    As text, passwords and queries, which carry signatures, are masked; `url` has them.
    """

    __slots__ = ("_query", "url", "visit")

    def __init__(self, url: str, visit: Visit | None = None) -> None:
        scheme, _, rest = url.partition("://")
        self.visit = visit or Visit()
        self._query = ""
        if scheme.lower() in _WEB:
            # What follows "#" never leaves a browser; a query is no part of the file's name.
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
        """The location without password and query: what a configuration may name."""
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
        """Whether the host stands behind a user; `hf://org/repo@revision` has none."""
        user, at, _ = self._bare.partition("://")[2].partition("/")[0].rpartition("@")
        return bool(at) and (":" in user or self.scheme != "hf")


if TYPE_CHECKING:
    Location = Path | RemotePath
else:

    class Location(ABC):  # noqa: B024 (nobody makes one)
        """Either of the two: one class, since msgspec decodes no union of classes."""

    Location.register(Path)
    Location.register(RemotePath)


def locate(place: str | Location) -> Location:
    """Return what `place` names: with a protocol a remote location, else a path."""
    if not isinstance(place, str):
        return place
    if not is_remote(place):
        return Path(place)
    if place[:7].lower() == "file://":
        return Path(unquote(urlsplit(place).path))
    return RemotePath(place)


def within(folder: Path, place: Location) -> Location:
    """Return a relative path in `folder`; what is remote, or absolute, is where it is."""
    return place if isinstance(place, RemotePath) else folder / place


def is_remote(text: str) -> bool:
    r"""Whether a text names its protocol, "s3://" or "https://".

    One letter is a drive of Windows: `C:\x`, `C:/x` and even `C://x` are paths.
    """
    scheme, mark, _ = text.partition("://")
    plain = scheme.replace("+", "").replace("-", "").replace(".", "")
    return bool(mark) and len(scheme) > 1 and plain.isascii() and plain.isalnum()


def masked(text: str) -> str:
    """Return what somebody else says of URLs without the passwords and signatures in them."""
    return re.sub(_USER, "***@", re.sub(_QUERY, "?***", text))
