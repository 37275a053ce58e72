"""nn.Module -> an independent copy: hooks, closures and weak references lead to the copy, too."""

import copy
import functools
import types
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from ckptool.modules.tensors.elements import iter_nested_tensors
from ckptool.modules.tensors.tensor_parts import is_lazy
from ckptool.modules.user_code import user_code

if TYPE_CHECKING:
    from torch import Tensor, nn

_MAX_DEPTH: Final = 4
"""Functions inside functions and containers that are looked into."""


def copy_module(module: "nn.Module", replacements: Mapping[int, Any] | None = None) -> "nn.Module":
    """Return a deep copy of `module` that shares no sub-module, parameter or buffer with it.

    copy.deepcopy() leaves functions and weak references as they are, so that a hook that closes
    over the module would change the original. Here they lead to the copy. An attribute that cannot
    be copied (a lock, an open file) is the same object in both.

    Args:
        module: it is not changed, unless its own `__deepcopy__` changes it.
        replacements: id of an object -> what the copy has in its place.

    Raises:
        UserCodeError: copying raised, or returned parts of the module itself.
    """
    with user_code():
        members = [module, *(member for member in module.modules() if member is not module)]
        values = [value for member in members for value in vars(member).values()]
        memo = {**_copy_special_tensors(module, values), **(replacements or {})}
        try:
            used_memo = dict(memo)
            copied = copy.deepcopy(module, used_memo)
        except Exception:
            shared = _find_uncopyable(values, memo)
            if not shared:
                raise
            used_memo = memo | shared
            copied = copy.deepcopy(module, used_memo)
        _require_independent(module, copied)
        _Rebinding(used_memo).rebind_module(copied)
    return copied


def _copy_special_tensors(module: "nn.Module", values: list[Any]) -> dict[int, Any]:
    """Return copies, by id of the original, of tensors that copy.deepcopy() raises for."""
    import torch

    lazy = [parameter for parameter in module.parameters() if is_lazy(parameter)]
    computed = [value for value in values if isinstance(value, torch.Tensor) and not value.is_leaf]
    copies: dict[int, Any] = {id(tensor): tensor.detach().clone() for tensor in computed}
    for parameter in lazy:
        make_parameter: Callable[..., Tensor] = type(parameter)
        copies[id(parameter)] = make_parameter(
            parameter.requires_grad, parameter.device, parameter.dtype
        )
    return copies


def _find_uncopyable(values: list[Any], memo: Mapping[int, Any]) -> dict[int, Any]:
    """Return the attributes that copy.deepcopy() raises for, by id.

    Nothing if one of them holds a tensor, which a load into the copy could change in the module.
    """
    from torch import Tensor, nn

    shared: dict[int, Any] = {}
    for value in values:
        if isinstance(value, Tensor | nn.Module | str | int | float | type(None)):
            continue
        items = value.values() if isinstance(value, dict) else ()
        if any(isinstance(item, Tensor | nn.Module) for item in items):
            continue
        try:
            copy.deepcopy(value, dict(memo))
        except Exception:  # noqa: BLE001 (an object's own __reduce__ may raise anything)
            if next(iter_nested_tensors(value), None) is not None:
                return {}
            shared[id(value)] = value
    return shared


def _require_independent(module: "nn.Module", copied: "nn.Module") -> None:
    """Raise if a load into the copy would change the module.

    Raises:
        TypeError: they share a sub-module.
    """
    own_ids = {id(member) for member in module.modules()}
    shared = next((part for part in copied.modules() if id(part) in own_ids), None)
    if shared is not None:
        name = type(shared).__qualname__
        raise TypeError(f"copy.deepcopy() of {name} returns the same object, not a copy")


class _Rebinding:
    """Makes functions, methods and weak references of a copy refer to the copy."""

    def __init__(self, memo: Mapping[int, Any]) -> None:
        """Make one for the memo of copy.deepcopy(): id of an original -> its copy."""
        self._memo = memo
        self._cells: dict[int, types.CellType] = {}
        self._functions: dict[int, types.FunctionType] = {}
        self._kept: list[Any] = []
        """Objects whose ids are keys."""

    def rebind_module(self, copied: "nn.Module") -> None:
        """Rebind attributes and hooks of all sub-modules in place."""
        for member in copied.modules():
            attributes = vars(member)
            for name, value in list(attributes.items()):
                new = self._rebind(value, _MAX_DEPTH)
                if new is not value:
                    attributes[name] = new

    def _rebind(self, value: Any, depth: int) -> Any:
        """Return what stands for `value` in the copy: itself, unless it leads to an original."""
        result = self._memo.get(id(value), value)
        if result is not value or depth == 0:
            return result
        match value:
            case types.FunctionType():
                result = self._rebind_function(value, depth)
            case types.MethodType():
                result = self._rebind_method(value, depth)
            case functools.partial():
                result = self._rebind_partial(value, depth)
            case weakref.ReferenceType():
                result = self._rebind_weak_reference(value)
            case _:
                self._rebind_items(value, depth)
        return result

    def _rebind_items(self, value: Any, depth: int) -> None:
        """Rebind in place the items of a container that the copy has of its own."""
        match value:
            case dict():
                for key, item in list(value.items()):
                    if (new := self._rebind(item, depth - 1)) is not item:
                        value[key] = new
            case list():
                for index, item in enumerate(value):
                    if (new := self._rebind(item, depth - 1)) is not item:
                        value[index] = new
            case _:
                if _is_hook_wrapper(value):
                    value.hook = self._rebind(value.hook, depth - 1)

    def _rebind_weak_reference(self, reference: "weakref.ReferenceType[Any]") -> Any:
        target = reference()
        copied = target if target is None else self._memo.get(id(target), target)
        return reference if copied is target else weakref.ref(copied)

    def _rebind_function(self, function: types.FunctionType, depth: int) -> types.FunctionType:
        """Return the function with what it closes over, and its defaults, in the copy."""
        if not (function.__closure__ or function.__defaults__ or function.__kwdefaults__):
            return function
        if id(function) in self._functions:
            return self._functions[id(function)]
        cells = function.__closure__ or ()
        new_cells = [self._cells.get(id(cell)) or types.CellType() for cell in cells]
        new = types.FunctionType(
            function.__code__,
            function.__globals__,
            function.__name__,
            tuple(self._rebind(value, depth - 1) for value in function.__defaults__ or ()) or None,
            tuple(new_cells) if cells else None,
        )
        self._functions[id(function)] = new  # it may close over itself
        self._kept.append(function)
        defaults = {
            name: self._rebind(value, depth - 1)
            for name, value in (function.__kwdefaults__ or {}).items()
        }
        is_changed = not _are_same(new.__defaults__ or (), function.__defaults__ or ())
        is_changed |= not _are_same(defaults.values(), (function.__kwdefaults__ or {}).values())
        for cell, new_cell in zip(cells, new_cells, strict=True):
            is_changed |= self._fill_cell(cell, new_cell, depth)
        if not is_changed:
            self._functions[id(function)] = function
            return function
        new.__kwdefaults__ = defaults or None
        functools.update_wrapper(new, function)
        return new

    def _fill_cell(self, cell: types.CellType, new_cell: types.CellType, depth: int) -> bool:
        """Give `new_cell` the content of `cell` in the copy; return whether it is another one."""
        self._cells[id(cell)] = new_cell
        self._kept.append(cell)
        try:
            content = cell.cell_contents
        except ValueError:  # not assigned yet
            return False
        if isinstance(content, dict | list | tuple | set):
            leads_to_original = any(id(item) in self._memo for item in _iter_items(content))
            new = copy.deepcopy(content, dict(self._memo)) if leads_to_original else content
        else:
            new = self._rebind(content, depth - 1)
        new_cell.cell_contents = new
        return new is not content

    def _rebind_method(self, method: types.MethodType, depth: int) -> types.MethodType:
        owner = self._memo.get(id(method.__self__), method.__self__)
        function = self._rebind(method.__func__, depth - 1)
        if owner is method.__self__ and function is method.__func__:
            return method
        return types.MethodType(function, owner)

    def _rebind_partial(
        self, partial: "functools.partial[Any]", depth: int
    ) -> "functools.partial[Any]":
        function = self._rebind(partial.func, depth - 1)
        args = tuple(self._rebind(value, depth - 1) for value in partial.args)
        kwargs = {name: self._rebind(value, depth - 1) for name, value in partial.keywords.items()}
        if (
            function is partial.func
            and _are_same(args, partial.args)
            and _are_same(kwargs.values(), partial.keywords.values())
        ):
            return partial
        return functools.partial(function, *args, **kwargs)


def _is_hook_wrapper(value: object) -> bool:
    """Whether it is what torch makes of a hook of `register_load_state_dict_pre_hook`."""
    return type(value).__name__ == "_WrappedHook" and hasattr(value, "hook")


def _iter_items(content: Any) -> Iterator[Any]:
    yield from content.values() if isinstance(content, dict) else content


def _are_same(values: Any, others: Any) -> bool:
    return all(value is other for value, other in zip(values, others, strict=True))
