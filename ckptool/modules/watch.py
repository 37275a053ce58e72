"""Hook assignments of modules under construction: AssignmentLocations and MetaParameters."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, Final

from ckptool.modules.places import Places
from ckptool.modules.twins import Twins

_ASSIGNING: Final = ("__setattr__", "register_buffer", "register_parameter")


@contextmanager
def watched(places: Places, twins: Twins | None) -> Iterator[None]:
    """Record every assignment to an nn.Module; register meta parameters if they are given.

    Patches nn.Module until exit. Assignments by other threads are passed through.
    """
    from torch import nn

    builder = threading.get_ident()

    def noting(original: Callable[..., None]) -> Callable[..., None]:
        @wraps(original)
        def assign(module: nn.Module, name: str, *rest: Any, **named: Any) -> None:
            if threading.get_ident() == builder:
                places.note(module, name)
            original(module, name, *rest, **named)

        return assign

    def twinning(original: Callable[..., None]) -> Callable[..., None]:
        @wraps(original)
        def register(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
            if twins is not None and param is not None and threading.get_ident() == builder:
                param = twins.of(param)
            original(module, name, param)

        return register

    originals = {name: getattr(nn.Module, name) for name in _ASSIGNING}
    try:
        for name, original in originals.items():
            setattr(nn.Module, name, noting(original))
        last = _ASSIGNING[-1]
        setattr(nn.Module, last, twinning(getattr(nn.Module, last)))
        yield
    finally:
        for name, original in originals.items():
            setattr(nn.Module, name, original)
