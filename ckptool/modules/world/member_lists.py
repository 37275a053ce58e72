"""nn.Module -> whether the lists of its members end: methods that a class overrides may not."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from ckptool.modules.assignment_locations import format_location

if TYPE_CHECKING:
    from torch import nn

_METHODS: Final = (
    "named_modules",
    "modules",
    "named_children",
    "children",
    "named_parameters",
    "parameters",
    "named_buffers",
    "buffers",
)
_MAX_ITEMS: Final = 100_000
"""Items of a list that are counted in any case."""
_MAX_ITEMS_PER_MEMBER: Final = 10
"""Further items for each module, parameter and buffer that is registered."""


class EndlessListError(RuntimeError):
    """A method of a module, or its state_dict, gives more items than it can have."""


def check_member_lists(module: "nn.Module") -> None:
    """Count what the overridden methods of `module` and its sub-modules list, up to a limit.

    Raises:
        EndlessListError: one of them goes on beyond the limit.
    """
    members = list(_iter_registered_modules(module))
    limit = _compute_limit(members)
    for member in members:
        for name in _METHODS:
            function = getattr(type(member), name, None)
            if function is not _get_own_method(name) and callable(function):
                _check_method(member, name, limit)


def check_state_dict(module: "nn.Module", state_dict: Mapping[Any, Any]) -> None:
    """Count the keys of what state_dict() gave, up to a limit.

    Raises:
        EndlessListError: it has more.
    """
    if not _has_more(state_dict, _MAX_ITEMS):
        return
    limit = _compute_limit(list(_iter_registered_modules(module)))
    if _has_more(state_dict, limit):
        raise EndlessListError(f"its keys do not end: there are more than {limit:,}")


def _check_method(module: "nn.Module", name: str, limit: int) -> None:
    try:
        is_endless = _has_more(getattr(module, name)(), limit)
    except Exception:  # noqa: BLE001 (what it raises, it raises again where it is used)
        return
    if is_endless:
        code = getattr(getattr(type(module), name), "__code__", None)
        place = f" ({format_location(code.co_filename, code.co_firstlineno)})" if code else ""
        raise EndlessListError(
            f"{type(module).__qualname__}.{name}(){place} does not end: it gives more than"
            f" {limit:,} items"
        )


def _has_more(items: Iterable[object], limit: int) -> bool:
    return sum(1 for _ in islice(items, limit + 1)) > limit


def _compute_limit(members: list["nn.Module"]) -> int:
    count = sum(1 + len(m._parameters) + len(m._buffers) for m in members)  # noqa: SLF001
    return _MAX_ITEMS + _MAX_ITEMS_PER_MEMBER * count


def _get_own_method(name: str) -> object:
    from torch import nn

    return getattr(nn.Module, name)


def _iter_registered_modules(module: "nn.Module") -> Iterator["nn.Module"]:
    """Yield `module` and all below it once, by what is registered and not by what they say."""
    known_ids, stack = {id(module)}, [module]
    while stack:
        current = stack.pop()
        yield current
        for child in _list_registered_children(current):
            if child is not None and id(child) not in known_ids:
                known_ids.add(id(child))
                stack.append(child)


def _list_registered_children(module: "nn.Module") -> tuple["nn.Module | None", ...]:
    """Return what is registered, whatever a dict subclass says; a scripted module has no dict."""
    modules: Any = module._modules  # noqa: SLF001
    return tuple(dict.values(modules) if isinstance(modules, dict) else modules.values())
