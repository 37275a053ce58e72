"""nn.Module -> UsageChanges: state changed since construction that is not in the state_dict."""

import copy
import inspect
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final

import torch
from msgspec.structs import replace
from torch import nn

from ckptool.errors import ModuleError
from ckptool.model import Constancy, ModuleState, Skipped
from ckptool.modules.build import SEEDS, random_state
from ckptool.modules.snapshot import Snapshot, appeared, mutated, take
from ckptool.modules.source import Sources
from ckptool.modules.usercode import UserCodeError, user_code
from ckptool.verification.facts import PythonChange, Usage
from ckptool.verification.instances import Maker
from ckptool.verification.load import load

INSIDE: Final = "inside the with block"
_BUILT: Final = "since it was built"
_WHAT: Final = "what was changed since the module was built"
_UNKNOWN: Final = (
    "the arguments of its constructor are not known: give kwargs={...} or fresh=lambda: ..."
)


def changes(before: Snapshot, after: Snapshot) -> tuple[PythonChange, ...]:
    """Return the plain Python values that changed.

    Values that were None are left out: usually caches that are filled on first use.
    """
    return tuple(
        PythonChange(path, one.text, after.python[path].text, one.flag, one.owner)
        for path, one in before.python.items()
        if path in after.python and not one.empty and after.python[path].text != one.text
    )


def between(target: str, before: Snapshot, after: Snapshot) -> Usage:
    """Return the changes between two snapshots of one module.

    Changes in modules with extra state (`get_extra_state`) are skipped: it may hold them.
    """
    lost = dict.fromkeys(mutated(before, after), Constancy.MUTATED)
    lost |= dict.fromkeys(appeared(before, after), Constancy.UNKNOWN)
    values = changes(before, after)
    stored = [path for path in lost if path in after.stored]
    stored += [one.path for one in values if after.python[one.path].stored]
    untold = [p for p, mark in before.marks.items() if not mark and p in after.marks]
    return Usage(
        target,
        INSIDE,
        changed=tuple(one for one in values if one.path not in stored),
        constancy={path: known for path, known in lost.items() if path not in stored},
        skipped=(
            *(Skipped(path, "its module saves extra state, which may hold it") for path in stored),
            *(Skipped(path, "its elements cannot be read") for path in untold),
        ),
    )


def since_built(
    module: nn.Module,
    kwargs: Mapping[str, object] | None = None,
    fresh: Callable[[], nn.Module] | None = None,
) -> Usage:
    """Compare a module with fresh instances that have its state_dict loaded; a save loses the rest.

    Two are built, with two seeds: state that differs between them is random, not changed by use.
    """
    target = type(module).__qualname__
    build = _builder(module, kwargs, fresh)
    if build is None:
        return Usage(target, _BUILT, skipped=(Skipped(_WHAT, _UNKNOWN),))
    guessed = kwargs is None and fresh is None and _takes_more(module)
    if guessed and _is_another(build, module):
        reason = f"building it anew gives another state_dict: {_UNKNOWN}"
        return Usage(target, _BUILT, skipped=(Skipped(_WHAT, reason),))
    maker = Maker(target, build=build)
    try:
        with random_state():
            once, again = (_reloaded(maker, module, seed) for seed in SEEDS)
        with user_code():
            live = take(module)
    except (ModuleError, UserCodeError) as error:
        return Usage(target, _BUILT, skipped=(Skipped(_WHAT, str(error)),))
    steady = replace(
        once,
        python={
            path: value
            for path, value in once.python.items()
            if path in again.python and again.python[path].text == value.text
        },
    )
    usage = Usage(
        target,
        _BUILT,
        changed=changes(steady, live),
        constancy={
            path: _constancy(mark, once.marks.get(path), again.marks.get(path))
            for path, mark in live.marks.items()
        },
    )
    return _certain(usage, module) if guessed else usage


def _takes_more(module: nn.Module) -> bool:
    """Whether the constructor has parameters whose arguments the module does not store."""
    return len(_kept_arguments(module) or {}) < len(_arguments(type(module)) or {})


def _is_another(build: Callable[[], Any], module: nn.Module) -> bool:
    """Whether building with guessed arguments, on meta, gives other keys or shapes."""
    with suppress(UserCodeError), random_state(), user_code(), torch.device("meta"):
        made = build()
        return _form(made.state_dict()) != _form(module.state_dict())
    return False


def _certain(usage: Usage, module: nn.Module) -> Usage:
    """Drop changes that other constructor arguments could explain as well.

    A change is kept if code that runs after construction assigns the attribute.
    """
    sources, members = Sources(), dict(module.named_modules())
    unsure = {
        path
        for path in (
            *(one.path for one in usage.changed),
            *(path for path, known in usage.constancy.items() if known is Constancy.MUTATED),
        )
        if not _written(path, members, sources)
    }
    if not unsure:
        return usage
    return replace(
        usage,
        changed=tuple(one for one in usage.changed if one.path not in unsure),
        constancy={
            path: Constancy.UNKNOWN if path in unsure else known
            for path, known in usage.constancy.items()
        },
        skipped=(*usage.skipped, Skipped(_WHAT, f"{len(unsure)} values: {_UNKNOWN}")),
    )


def _written(path: str, members: Mapping[str, nn.Module], sources: Sources) -> str:
    steps = re.split(r"\.(?![^\[]*\])", path)
    owner = next(n for n in range(len(steps) - 1, -1, -1) if ".".join(steps[:n]) in members)
    attribute = steps[owner].partition("[")[0]
    return sources.written(type(members[".".join(steps[:owner])]), attribute)


def informed(state: ModuleState, usage: Usage) -> ModuleState:
    """Return the ModuleInfo with the constancy of unsaved state taken from `usage_changes`."""
    held = {
        key: one
        if one.saved or key not in usage.constancy
        else replace(one, constancy=usage.constancy[key])
        for key, one in state.held.items()
    }
    kept = [s for s in state.skipped if s.what != "constancy"]
    return replace(state, held=held, skipped=(*kept, *usage.skipped))


def only_changed(state: ModuleState, usage: Usage) -> ModuleState:
    """Drop unsaved state that did not change, and observations that `watch` does not make."""
    held = {k: one for k, one in state.held.items() if one.saved or k in usage.constancy}
    hidden = {
        path: cls
        for path, cls in state.hidden_modules.items()
        if any(key.startswith(f"{path}.") for key in usage.constancy)
    }
    return replace(state, held=held, hidden_modules=hidden, none_buffers={}, filled={})


def _constancy(live: str, once: str | None, again: str | None) -> Constancy:
    """Return the constancy of a value from its digests in the live module and two fresh ones.

    UNKNOWN if a digest is "" or None.
    """
    if not live or not once or not again:
        return Constancy.UNKNOWN
    if once != again:
        return Constancy.RANDOM
    return Constancy.CONSTANT if once == live else Constancy.MUTATED


def _builder(
    module: nn.Module,
    kwargs: Mapping[str, object] | None,
    fresh: Callable[[], nn.Module] | None,
) -> Callable[[], Any] | None:
    """Return a function that builds a fresh instance; None if its arguments are unknown.

    Uses `fresh`, else `kwargs`, else the arguments that the module stores.
    """
    if fresh is not None:
        return fresh
    cls: Callable[..., nn.Module] = type(module)
    given = kwargs if kwargs is not None else _kept_arguments(module)
    if given is None:
        return None
    known = given
    return lambda: cls(**copy.deepcopy(dict(known)))


def _kept_arguments(module: nn.Module) -> Mapping[str, object] | None:
    """Return arguments from Lightning's `hparams` or `config`; None if a required one is missing.

    {} if no argument is required and none is stored.
    """
    named = _arguments(type(module))
    if named is None:
        return None
    given: dict[str, object] = {}
    with suppress(UserCodeError), user_code():
        hparams = getattr(module, "hparams", None)
        given = {k: v for k, v in dict(hparams or {}).items() if k in named}
        if "config" in named and "config" not in given and hasattr(module, "config"):
            given["config"] = module.config
    needed = {name for name, one in named.items() if one.default is one.empty}
    return given if needed <= given.keys() else None


def _arguments(cls: type[nn.Module]) -> dict[str, inspect.Parameter] | None:
    try:
        parameters = inspect.signature(cls).parameters
    except (TypeError, ValueError):
        return None
    return {
        name: one
        for name, one in parameters.items()
        if one.kind in {one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY}
    }


def _reloaded(maker: Maker, module: nn.Module, seed: int) -> Snapshot:
    """Return the snapshot of a fresh instance with the state_dict of `module` loaded.

    Raises:
        ModuleError: it cannot be built, has other keys or shapes, or loading raises.
    """
    again = maker.make(seed)
    if again is module:
        raise ModuleError(maker.target, "fresh= gives the module itself, not another one")
    with user_code():
        saved = module.state_dict()
        if _form(again.state_dict()) != _form(saved):
            raise ModuleError(
                maker.target, f"building it anew gives another state_dict: {_UNKNOWN}"
            )
        dtype = _dtype(module)
        if dtype is not None and dtype != _dtype(again):
            again.to(dtype)
    load(again, saved, maker.target)
    with user_code():
        return take(again)


def _form(state: Mapping[str, Any]) -> set[tuple[str, object]]:
    return {(key, getattr(value, "shape", None)) for key, value in state.items()}


def _dtype(module: nn.Module) -> torch.dtype | None:
    """Return the dtype of the first floating-point parameter, None if there is none."""
    return next((p.dtype for p in module.parameters() if p.is_floating_point()), None)
