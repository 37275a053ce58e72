"""Hook assignments of modules under construction: AssignmentLocations and MetaParameters."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, Final

from ckptool.modules.assignment_locations import AssignmentLocations
from ckptool.modules.meta_parameters import MetaParameters

_ASSIGNMENT_METHODS: Final = ("__setattr__", "register_buffer", "register_parameter")


@contextmanager
def hook_assignments(
    locations: AssignmentLocations, meta_parameters: MetaParameters | None
) -> Iterator[None]:
    """Record every assignment to an nn.Module; register meta parameters if they are given.

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

    originals = {name: getattr(nn.Module, name) for name in _ASSIGNMENT_METHODS}
    try:
        for name, original in originals.items():
            setattr(nn.Module, name, wrap_recording(original))
        last_method = _ASSIGNMENT_METHODS[-1]
        setattr(nn.Module, last_method, wrap_replacing(getattr(nn.Module, last_method)))
        yield
    finally:
        for name, original in originals.items():
            setattr(nn.Module, name, original)
