"""Hook assignments of modules under construction: AssignmentLocations and MetaParameters."""

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, Final

from ckptool.modules.assignment_locations import AssignmentLocations
from ckptool.modules.meta_parameters import MetaParameters

_ASSIGNMENT_METHODS: Final = ("__setattr__", "register_buffer", "register_parameter")
_LOAD_METHOD: Final = "load_state_dict"
_HOOKED_METHODS: Final = (*_ASSIGNMENT_METHODS, _LOAD_METHOD)
_NO_VALUES_MESSAGE: Final = ".*copying from a non-meta parameter"


@contextmanager
def hook_assignments(
    locations: AssignmentLocations, meta_parameters: MetaParameters | None
) -> Iterator[None]:
    """Record every assignment to an nn.Module; register meta parameters if they are given.

    With these, a load_state_dict() of the constructor has no effect on parameters: it is counted.

    Patches nn.Module until exit. Assignments by other threads are passed through.
    """
    from torch import nn

    builder_thread = threading.get_ident()

    def wrap_recording(original: Callable[..., None]) -> Callable[..., None]:
        @wraps(original)
        def assign_recorded(module: nn.Module, name: str, *args: Any, **kwargs: Any) -> None:
            if threading.get_ident() == builder_thread:
                locations.record_assignment(module, name)
            original(module, name, *args, **kwargs)

        return assign_recorded

    def wrap_replacing(original: Callable[..., None]) -> Callable[..., None]:
        @wraps(original)
        def register_replaced(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
            if (
                meta_parameters is not None
                and param is not None
                and threading.get_ident() == builder_thread
            ):
                param = meta_parameters.replace_parameter(param)
            original(module, name, param)

        return register_replaced

    originals = {name: getattr(nn.Module, name) for name in _HOOKED_METHODS}
    try:
        for name in _ASSIGNMENT_METHODS:
            setattr(nn.Module, name, wrap_recording(originals[name]))
        if meta_parameters is not None:
            original = originals[_LOAD_METHOD]
            setattr(nn.Module, _LOAD_METHOD, _wrap_loading(original, meta_parameters))
        last_method = _ASSIGNMENT_METHODS[-1]
        setattr(nn.Module, last_method, wrap_replacing(getattr(nn.Module, last_method)))
        yield
    finally:
        for name, original in originals.items():
            setattr(nn.Module, name, original)


def _wrap_loading(original: Callable[..., Any], meta_parameters: MetaParameters) -> Any:
    """Return a load_state_dict() that is counted, and does not warn that it has no effect."""
    builder_thread = threading.get_ident()

    @wraps(original)
    def load_without_values(module: Any, *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() != builder_thread:
            return original(module, *args, **kwargs)
        meta_parameters.lost_loads += 1
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", _NO_VALUES_MESSAGE, UserWarning)
            return original(module, *args, **kwargs)

    return load_without_values
