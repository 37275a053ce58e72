"""nn.Module -> ModuleSnapshot: state outside the parameters and persistent buffers."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from ckptool.model import Kind
from ckptool.modules.containers import is_plain
from ckptool.modules.tensors import content_mark
from ckptool.modules.walk import Found, join, qualified, walk

if TYPE_CHECKING:
    from torch import nn

_LONGEST: Final = 200
"""Maximum characters of a value; a longer text is replaced by its start, length and digest."""


class PythonValue(Struct, frozen=True):
    """A bool, number, str or None attribute of a module."""

    text: str
    flag: bool
    """Whether the value is a bool."""
    empty: bool
    """Whether the value is None."""
    owner: str
    """Qualified name of the class of the module that owns it."""
    stored: bool
    """Whether the owner overrides get_extra_state(), which may save it."""


class Snapshot(Struct, frozen=True):
    """Unsaved state at one point in time, by path."""

    python: Mapping[str, PythonValue]
    marks: Mapping[str, str]
    """Path of a tensor or array -> digest of its elements, "" if they are unavailable."""
    stored: frozenset[str]
    """Paths of `digests` whose module overrides get_extra_state()."""


def take(module: "nn.Module") -> Snapshot:
    """Record all state of `module` except its parameters and persistent buffers."""
    internal = vars(_module_class()()).keys()
    members = list(module.named_modules())
    loose = [found for found in walk(module).found if not _registered(found)]
    return Snapshot(
        python={
            path: value
            for prefix, member in members
            for path, value in _python(prefix, member, internal)
        },
        marks={found.path: content_mark(found.value) for found in loose},
        stored=frozenset(found.path for found in loose if _saves_extra(found.owner)),
    )


def mutated(before: Snapshot, after: Snapshot) -> tuple[str, ...]:
    """Return the paths of tensors and arrays whose elements changed."""
    return tuple(
        path
        for path, mark in before.marks.items()
        if mark and after.marks.get(path, mark) not in {"", mark}
    )


def appeared(before: Snapshot, after: Snapshot) -> tuple[str, ...]:
    """Return the paths of tensors and arrays that only `after` contains."""
    return tuple(path for path in after.marks if path not in before.marks)


def _registered(found: Found) -> bool:
    return found.registered and found.kind in {Kind.PARAMETER, Kind.BUFFER}


def _python(prefix: str, member: "nn.Module", internal: Any) -> Iterator[tuple[str, PythonValue]]:
    """Yield the plain values in attributes of a module and of its plain objects."""
    owner, stored = qualified(type(member)), _saves_extra(member)
    for name, value in vars(member).items():
        if name in internal:
            continue
        for path, one in _plain_values(join(prefix, name), value):
            yield path, PythonValue(_text(one), isinstance(one, bool), one is None, owner, stored)


def _plain_values(path: str, value: object) -> Iterator[tuple[str, Any]]:
    if isinstance(value, bool | int | float | str | None):
        yield path, value
    elif is_plain(value) and not isinstance(value, _module_class()):
        fields = vars(value) if hasattr(value, "__dict__") else _fields(value)
        for name, one in fields.items():
            if isinstance(one, bool | int | float):
                yield f"{path}.{name}", one


def _fields(value: Any) -> dict[str, Any]:
    """Return the fields of a dataclass with slots, {} for another object."""
    if not dataclasses.is_dataclass(value):
        return {}
    names = [item.name for item in dataclasses.fields(value)]
    return {name: getattr(value, name) for name in names if hasattr(value, name)}


def _text(value: object) -> str:
    shown = repr(value)
    if len(shown) <= _LONGEST:
        return shown
    from hashlib import sha256

    digest = sha256(shown.encode(errors="surrogatepass")).hexdigest()
    return f"{shown[: _LONGEST // 4]}... ({len(shown)} characters, {digest[:12]})"


def _saves_extra(module: "nn.Module") -> bool:
    return type(module).get_extra_state is not _module_class().get_extra_state


def _module_class() -> "type[nn.Module]":
    from torch import nn

    return nn.Module
