"""install() and uninstall(): notes at the errors of loading functions."""

import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import RLock, local
from typing import TYPE_CHECKING, Any, Final

from ckptool.errors import LoadWarning

if TYPE_CHECKING:
    from ckptool.commands.hooks.file_origins import FileOrigins
    from ckptool.commands.hooks.wrapped_function import WrappedFunction

_LIBRARIES: Final = ("ckptool", "safetensors", "transformers", "accelerate", "diffusers", "peft")
"""Packages that call load_state_dict(strict=False) and look at the result themselves."""
_lock = RLock()
_wrapped: "list[WrappedFunction]" = []
_working = local()


def install() -> None:
    """Explain failed loads at the error, and warn of keys that strict=False leaves out.

    Wraps `nn.Module.load_state_dict`, `torch.load`, and `load_file` and `load_model` of
    safetensors.torch. The error gets a note (`add_note`) with its cause and what to do, which
    Python's traceback shows; `strict=False` gives a `ckptool.LoadWarning`. What the calls return
    and raise stays the same. A second call does nothing; `uninstall()` undoes it.
    """
    import torch
    from torch import nn

    from ckptool.commands.hooks.file_origins import FileOrigins
    from ckptool.commands.hooks.wrapped_function import WrappedFunction

    with _lock:
        if _wrapped:
            return
        origins = FileOrigins()
        _wrapped.append(
            WrappedFunction(
                nn.Module,
                "load_state_dict",
                lambda args, kwargs, keys: _warn_of_lost_keys(origins, args, kwargs, keys),
                lambda args, kwargs, error: _add_load_note(origins, args, kwargs, error),
            )
        )
        owners = [(torch, "load"), *_find_safetensors_functions()]
        _wrapped.extend(_wrap_reader(owner, name, origins) for owner, name in owners)


def uninstall() -> None:
    """Undo `install()`: the functions are the same objects as before."""
    with _lock:
        while _wrapped:
            _wrapped.pop().restore()


def _find_safetensors_functions() -> Iterator[tuple[Any, str]]:
    try:
        import safetensors.torch
    except ImportError:
        return
    yield safetensors.torch, "load_file"
    yield safetensors.torch, "load_model"


def _wrap_reader(owner: Any, name: str, origins: "FileOrigins") -> "WrappedFunction":
    from ckptool.commands.hooks.wrapped_function import WrappedFunction

    def record(args: tuple[Any, ...], kwargs: dict[str, Any], loaded: object) -> None:
        with _protect_call() as is_first:
            if is_first and (path := _find_path(args, kwargs)):
                origins.record(loaded, path)

    def add_note(args: tuple[Any, ...], kwargs: dict[str, Any], error: BaseException) -> None:
        with _protect_call() as is_first:
            if is_first and not _has_note(error):
                from ckptool.commands.hooks.load_notes import format_error_note

                _add_note(error, format_error_note(error, _find_path(args, kwargs)))

    return WrappedFunction(owner, name, record, add_note)


@contextmanager
def _protect_call() -> Iterator[bool]:
    """Swallow errors of ours, and say whether this is not a call that our own code makes."""
    is_first = not getattr(_working, "is_set", False)
    _working.is_set = True
    try:
        yield is_first
    except Exception:  # noqa: BLE001, S110 - the user's call must not fail because of a note
        pass
    finally:
        _working.is_set = not is_first


def _find_path(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """Return the path among the arguments of a loading function, "" if there is none."""
    names = ("f", "filename", "path")
    for value in (*args[:2], *(kwargs.get(name) for name in names)):
        path = getattr(value, "name", value) if hasattr(value, "read") else value
        if isinstance(path, bytes):
            path = path.decode(errors="replace")
        if isinstance(path, str) or hasattr(path, "__fspath__"):
            return str(path)
    return ""


def _find_state_dict(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    return args[1] if len(args) > 1 else kwargs.get("state_dict")


def _add_load_note(
    origins: "FileOrigins", args: tuple[Any, ...], kwargs: dict[str, Any], error: BaseException
) -> None:
    with _protect_call() as is_first:
        if not is_first or _has_note(error):
            return
        from ckptool.commands.hooks.load_notes import format_error_note, format_load_note
        from ckptool.rules.known_errors.key_lists import parse_key_difference

        state_dict = _find_state_dict(args, kwargs)
        difference = parse_key_difference(" ".join(str(error).split()))
        if isinstance(error, RuntimeError) and difference.count and isinstance(state_dict, Mapping):
            note = format_load_note(args[0], state_dict, difference, origins.find(state_dict))
        else:
            note = format_error_note(error, "")
        _add_note(error, note)


def _warn_of_lost_keys(
    origins: "FileOrigins", args: tuple[Any, ...], kwargs: dict[str, Any], keys: object
) -> None:
    note = ""
    # 0 is this function, 1 the lambda, 2 the wrapper: 3 is who called it.
    caller = sys._getframe(3).f_globals.get("__name__", "")  # noqa: SLF001
    with _protect_call() as is_first:
        state_dict = _find_state_dict(args, kwargs)
        is_reported = caller.partition(".")[0] in _LIBRARIES
        if is_first and not is_reported and isinstance(state_dict, Mapping):
            note = _format_lost_keys(origins, args[0], state_dict, keys)
    if note:
        _show_warning(note)


def _format_lost_keys(
    origins: "FileOrigins", module: Any, state_dict: Mapping[str, Any], keys: object
) -> str:
    missing = tuple(getattr(keys, "missing_keys", ()) or ())
    unexpected = tuple(getattr(keys, "unexpected_keys", ()) or ())
    if not missing and not unexpected:
        return ""
    from ckptool.commands.hooks.load_notes import format_load_note
    from ckptool.phrases import pluralize
    from ckptool.rules.known_errors.key_lists import KeyDifference

    difference = KeyDifference(missing, unexpected, (), type(module).__name__)
    note = format_load_note(module, state_dict, difference, origins.find(state_dict))
    counts = f"{pluralize(len(missing), 'key')} missing and {len(unexpected)} unexpected"
    return f"load_state_dict(strict=False) left keys out: {counts}\n{note}"


def _show_warning(text: str) -> None:
    """Warn at the line of the caller; raises only where a filter names `LoadWarning` itself."""
    try:
        warnings.warn(text, LoadWarning, stacklevel=5)
    except LoadWarning:
        if any(kind == "error" and category is LoadWarning
               for kind, _, category, *_ in warnings.filters):  # fmt: skip
            raise


def _has_note(error: BaseException) -> bool:
    return any(note.startswith("ckptool: ") for note in getattr(error, "__notes__", ()))


def _add_note(error: BaseException, note: str) -> None:
    if note:
        error.add_note(note)
