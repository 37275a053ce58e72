"""nn.Module -> ModuleSnapshot: state outside the parameters and persistent buffers."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from ckptool.model import Kind, join_key
from ckptool.modules.object_children import is_plain_object
from ckptool.modules.tensors.elements import content_digest
from ckptool.modules.walk import FoundTensor, get_written_name, walk_module

if TYPE_CHECKING:
    from torch import nn

_MAX_TEXT_LENGTH: Final = 200
"""Maximum characters of a value; a longer text is replaced by its start, length and digest."""


class PythonValue(Struct, frozen=True):
    """A bool, number, str or None attribute of a module."""

    text: str
    is_bool: bool
    """Whether the value is a bool."""
    is_none: bool
    """Whether the value is None."""
    owner: str
    """Qualified name of the class of the module that owns it."""
    has_extra_state: bool
    """Whether the owner overrides get_extra_state(), which may save it."""


class ModuleSnapshot(Struct, frozen=True):
    """Unsaved state at one point in time, by path."""

    python_values: Mapping[str, PythonValue]
    digests: Mapping[str, str]
    """Path of a tensor or array -> digest of its elements, "" if they are unavailable."""
    extra_state_paths: frozenset[str]
    """Paths of `digests` whose module overrides get_extra_state()."""


def take_snapshot(
    module: "nn.Module", unsaved_tensors: Iterable[FoundTensor] | None = None
) -> ModuleSnapshot:
    """Record all state of `module` except its parameters and persistent buffers.

    Args:
        module: a live module.
        unsaved_tensors: what `list_unsaved_tensors(module)` returned; None calls it.
    """
    internal_names = vars(_import_module_class()()).keys()
    members = list(module.named_modules())
    unsaved_tensors = tuple(
        list_unsaved_tensors(module) if unsaved_tensors is None else unsaved_tensors
    )
    return ModuleSnapshot(
        python_values={
            path: value
            for prefix, member in members
            for path, value in _iter_python_values(prefix, member, internal_names)
        },
        digests={
            found_tensor.path: content_digest(found_tensor.value)
            for found_tensor in unsaved_tensors
        },
        extra_state_paths=frozenset(
            found_tensor.path
            for found_tensor in unsaved_tensors
            if _has_extra_state(found_tensor.owner)
        ),
    )


def list_unsaved_tensors(module: "nn.Module") -> tuple[FoundTensor, ...]:
    """Return the tensors and arrays of `module` that a state_dict does not hold."""
    return tuple(
        found_tensor
        for found_tensor in walk_module(module).tensors
        if not _is_loadable(found_tensor)
    )


def find_mutated(before: ModuleSnapshot, after: ModuleSnapshot) -> tuple[str, ...]:
    """Return the paths of tensors and arrays whose elements changed."""
    return tuple(
        path
        for path, digest in before.digests.items()
        if digest and after.digests.get(path, digest) not in {"", digest}
    )


def find_added(before: ModuleSnapshot, after: ModuleSnapshot) -> tuple[str, ...]:
    """Return the paths of tensors and arrays that only `after` contains."""
    return tuple(path for path in after.digests if path not in before.digests)


def _is_loadable(found_tensor: FoundTensor) -> bool:
    return found_tensor.is_registered and found_tensor.kind in {Kind.PARAMETER, Kind.BUFFER}


def _iter_python_values(
    prefix: str, member: "nn.Module", internal_names: Any
) -> Iterator[tuple[str, PythonValue]]:
    """Yield the plain values in attributes of a module and of its plain objects."""
    owner, has_extra_state = get_written_name(member), _has_extra_state(member)
    for name, value in vars(member).items():
        if name in internal_names:
            continue
        for path, plain_value in _iter_plain_values(join_key(prefix, name), value):
            yield (
                path,
                PythonValue(
                    shorten_repr(plain_value),
                    isinstance(plain_value, bool),
                    plain_value is None,
                    owner,
                    has_extra_state,
                ),
            )


def _iter_plain_values(path: str, value: object) -> Iterator[tuple[str, Any]]:
    if isinstance(value, bool | int | float | str | None):
        yield path, value
    elif is_plain_object(value) and not isinstance(value, _import_module_class()):
        fields = vars(value) if hasattr(value, "__dict__") else _read_fields(value)
        for name, field_value in fields.items():
            if isinstance(field_value, bool | int | float):
                yield f"{path}.{name}", field_value


def _read_fields(value: Any) -> dict[str, Any]:
    """Return the fields of a dataclass with slots, {} for another object."""
    if not dataclasses.is_dataclass(value):
        return {}
    names = [item.name for item in dataclasses.fields(value)]
    return {name: getattr(value, name) for name in names if hasattr(value, name)}


def shorten_repr(value: object) -> str:
    text = repr(value)
    if len(text) <= _MAX_TEXT_LENGTH:
        return text
    from hashlib import sha256

    digest = sha256(text.encode(errors="surrogatepass")).hexdigest()
    return f"{text[: _MAX_TEXT_LENGTH // 4]}... ({len(text)} characters, {digest[:12]})"


def _has_extra_state(module: "nn.Module") -> bool:
    return type(module).get_extra_state is not _import_module_class().get_extra_state


def _import_module_class() -> "type[nn.Module]":
    from torch import nn

    return nn.Module
