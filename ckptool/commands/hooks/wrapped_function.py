"""WrappedFunction: an attribute that another function replaces, and that can be put back."""

from collections.abc import Callable
from functools import wraps
from typing import Any

AfterReturn = Callable[[tuple[Any, ...], dict[str, Any], object], None]
AfterError = Callable[[tuple[Any, ...], dict[str, Any], BaseException], None]


class WrappedFunction:
    """Calls the original, and one of two functions of ours after it.

    What the original returns or raises stays the same.
    """

    def __init__(
        self, owner: Any, name: str, after_return: AfterReturn, after_error: AfterError
    ) -> None:
        self._owner = owner
        self._name = name
        self._original = owner.__dict__[name]
        self._is_active = True
        original = self._original

        @wraps(original)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            try:
                returned = original(*args, **kwargs)
            except Exception as error:
                if self._is_active:
                    after_error(args, kwargs, error)
                raise
            if self._is_active:
                after_return(args, kwargs, returned)
            return returned

        self._wrapper = wrapper
        setattr(owner, name, wrapper)

    def restore(self) -> None:
        """Put the original back; if something else replaced the wrapper, it only calls through."""
        self._is_active = False
        if self._owner.__dict__.get(self._name) is self._wrapper:
            setattr(self._owner, self._name, self._original)
