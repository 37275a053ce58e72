"""ModuleWalk, state_dict() and ProbeResults -> ModuleInfo."""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from ckptool.errors import ModuleError
from ckptool.grids import Preview
from ckptool.model import Constancy, Held, Kind, ModuleClass, ModuleState, Skipped
from ckptool.modules.places import Places
from ckptool.modules.probe import Following, is_floating
from ckptool.modules.source import Sources
from ckptool.modules.tensors import (
    Storages,
    describe_value,
    digest,
    dtype_name,
    halved,
    preview,
)
from ckptool.modules.twins import Twins
from ckptool.modules.usercode import UserCodeError, user_code
from ckptool.modules.walk import (
    DEPTH,
    METRIC,
    Found,
    Walk,
    attributes,
    below_module,
    is_torchs,
    qualified,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

_PREVIEWS: Final = 48
"""Maximum number of previews of saved tensors, and of unsaved tensors."""
_AUXILIARY = ("torch.nn.modules.loss._Loss", METRIC, "lpips.lpips.LPIPS")


@dataclass(frozen=True, slots=True)
class Evidence:
    """Results of building and probing a module, by path of its tensors."""

    constancy: Mapping[str, Constancy] = field(default_factory=dict)
    following: Mapping[str, Following] = field(default_factory=dict)
    twins: Twins = field(default_factory=Twins)
    places: Places | None = None
    skipped: tuple[Skipped, ...] = ()


def capture(module: "nn.Module", held: Walk, target: str, evidence: Evidence) -> ModuleState:
    """Describe the tensors of `module_walk` and of the state_dict of `module`.

    Raises:
        ModuleError: its state_dict() raises, or returns no mapping.
    """
    tensors, others = _split(_state_dict(module, target))
    description = _Description(held, tensors, others, evidence)
    saved = list(description.saved())
    unsaved = sorted(description.unsaved(), key=lambda one: _natural(one.key))
    unsearched = [
        Skipped(path, f"containers more than {DEPTH} deep are not searched")
        for path in held.unsearched
    ]
    return ModuleState(
        target=target,
        held={one.key: one for one in (*saved, *unsaved)},
        others={key: _in_words(value) for key, value in others.items()},
        none_buffers=held.none_buffers,
        filled=_filled(held),
        modules={prefix: _module_class(member) for prefix, member in held.members},
        hidden_modules=held.hidden,
        skipped=(*evidence.skipped, *unsearched),
    )


def _filled(held: Walk) -> dict[str, str]:
    """Return key -> "file:line" that assigns a persistent buffer that is None, "" if none does."""
    sources, members = Sources(), dict(held.members)
    found: dict[str, str] = {}
    for key in held.none_buffers:
        prefix, _, name = key.rpartition(".")
        owner = members[prefix]
        if name not in owner._non_persistent_buffers_set:  # noqa: SLF001
            found[key] = sources.written(type(owner), name)
    return found


def _state_dict(module: "nn.Module", target: str) -> Mapping[Any, Any]:
    state_dict: Callable[..., Any] = module.state_dict
    try:
        with user_code():
            found = state_dict(**_keep_vars(state_dict))
    except UserCodeError as error:
        raise ModuleError(target, f"its state_dict() raised {error}") from error
    if not isinstance(found, Mapping):
        raise ModuleError(target, f"its state_dict() gave a {type(found).__name__}, not a mapping")
    return found


def _keep_vars(state_dict: Callable[..., Any]) -> dict[str, bool]:
    """Return {"keep_vars": True} if `state_dict` accepts it: it then returns the parameters."""
    parameters = inspect.signature(state_dict).parameters.values()
    takes = any(p.name == "keep_vars" or p.kind is p.VAR_KEYWORD for p in parameters)
    return {"keep_vars": True} if takes else {}


def _split(state: Mapping[Any, Any]) -> "tuple[dict[str, Tensor], dict[str, object]]":
    from torch import Tensor

    tensors = {str(key): value for key, value in state.items() if isinstance(value, Tensor)}
    return tensors, {str(k): v for k, v in state.items() if not isinstance(v, Tensor)}


class _Description:
    """Matches the tensors of a module with the values of its state_dict, and describes both."""

    def __init__(
        self,
        held: Walk,
        tensors: "dict[str, Tensor]",
        others: dict[str, object],
        evidence: Evidence,
    ) -> None:
        self._held = held
        self._tensors = tensors
        self._evidence = evidence
        self._sources = Sources()
        self._storages = Storages(evidence.twins)
        self._previews = {True: _PREVIEWS, False: _PREVIEWS}
        """Number of previews left for saved (True) and unsaved (False) tensors."""
        self._claimed: set[str] = set()
        """Paths of tensors that are in the state_dict."""
        self._views = {self._storages.view(tensor): key for key, tensor in tensors.items()}
        self._nested = {self._storages.view(tensor) for tensor in _tensors_in(others, 4)}
        self._aliased = self._owners_of_storages()
        self._parameters = {id(f.value) for f in held.found if f.registered}

    def saved(self) -> Iterator[Held]:
        """Yield the tensors of the state_dict, in its order."""
        by_path = {found.path: found for found in self._held.found}
        by_view = {self._storages.view(f.value): f for f in self._held.found if f.registered}
        for key, tensor in self._tensors.items():
            found = by_path.get(key) or by_view.get(self._storages.view(tensor))
            if found is not None:
                self._claimed.add(found.path)
            yield self._saved(key, tensor, found)

    def unsaved(self) -> Iterator[Held]:
        """Yield the tensors outside the state_dict, except aliases that move with their owner."""
        for found in self._held.found:
            if found.path in self._claimed or self._is_saved_inside(found):
                continue
            alias = self._alias(found)
            if found.registered or not alias or not self._follows_owner(found):
                yield self._describe(found, found.path, found.value, alias, saved=False)

    def _owners_of_storages(self) -> dict[int, str]:
        """Return storage -> key of its first saved or registered tensor."""
        named = [*self._tensors.items()]
        named += [(f.path, f.value) for f in self._held.found if f.registered]
        owners: dict[int, str] = {}
        for key, tensor in named:
            identity = self._storages.identity(tensor)
            if identity is not None:
                owners.setdefault(identity, key)
        return owners

    def _is_saved_inside(self, found: Found) -> bool:
        """Whether a container in the state_dict holds the tensor, as the lists of metrics do."""
        return _is_tensor(found.value) and self._storages.view(found.value) in self._nested

    def _alias(self, found: Found) -> str:
        if not _is_tensor(found.value):
            return ""
        if found.registered:
            return self._views.get(self._storages.view(found.value), "")
        identity = self._storages.identity(found.value)
        return self._aliased.get(identity, "") if identity is not None else ""

    def _follows_owner(self, found: Found) -> bool:
        """Whether an alias moves with its registered tensor.

        Other references to a registered parameter do: on a real device `.to()` changes the
        parameter in place, which it cannot on meta.
        """
        from torch import nn

        itself = id(found.value) in self._parameters or self._evidence.twins.stands_for(found.value)
        if isinstance(found.value, nn.Parameter) and itself:
            return True
        return self._following(found).to

    def _following(self, found: Found) -> Following:
        default = Following(found.registered, found.registered or not _floating(found.value))
        return self._evidence.following.get(found.path, default)

    def _saved(self, key: str, tensor: "Tensor", found: Found | None) -> Held:
        if found is not None:
            return self._describe(found, key, tensor, "", saved=True)
        # Created by state_dict(): a hook, an override, or an extra state that is a tensor.
        return Held(
            tensor=describe_value(key, tensor, Kind.ATTRIBUTE, self._storages),
            kind=Kind.ATTRIBUTE,
            owner=qualified(type(self._held.members[0][1])),
            saved=True,
            constancy=Constancy.UNKNOWN,
            follows_to=True,
            follows_dtype=True,
            fingerprint=digest(tensor),
        )

    def _describe(self, found: Found, key: str, value: Any, alias: str, *, saved: bool) -> Held:
        cls, follows = type(found.owner), self._following(found)
        written = self._sources.written(cls, found.attribute)
        statistic = _is_statistic(found, written)
        return Held(
            tensor=describe_value(key, value, found.kind, self._storages),
            kind=found.kind,
            owner=qualified(cls),
            saved=saved,
            constancy=self._evidence.constancy.get(found.path, Constancy.UNKNOWN),
            follows_to=follows.to,
            follows_dtype=follows.dtype,
            where=self._where(found),
            used=self._sources.used(cls, found.attribute),
            moved=self._sources.moved(cls, found.attribute),
            cast=self._sources.cast(cls, found.attribute),
            written=written,
            alias_of=alias,
            statistic=statistic,
            fingerprint=digest(value),
            preview=None if statistic else self._preview(found.kind, value, saved=saved),
            halved=halved(value) if found.kind is Kind.BUFFER else {},
        )

    def _preview(self, kind: Kind, value: Any, *, saved: bool) -> Preview | None:
        if kind is Kind.PARAMETER or not self._previews[saved]:
            return None
        kept = preview(value)
        self._previews[saved] -= kept is not None
        return kept

    def _where(self, found: Found) -> str:
        noted = self._evidence.places
        place = noted.of(found.owner, found.attribute) if noted is not None else ""
        return place or self._sources.assigned(type(found.owner), found.attribute)


def _is_tensor(value: object) -> bool:
    from torch import Tensor

    return isinstance(value, Tensor)


def _floating(value: Any) -> bool:
    return is_floating(dtype_name(value))


def _tensors_in(value: object, depth: int) -> "Iterator[Tensor]":
    from torch import Tensor

    if isinstance(value, Tensor):
        yield value
    elif depth and isinstance(value, Mapping | list | tuple):
        for child in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors_in(child, depth - 1)


def _is_statistic(found: Found, written: str) -> bool:
    from torch.nn.modules.batchnorm import _NormBase

    if found.kind not in {Kind.BUFFER, Kind.NON_PERSISTENT_BUFFER}:
        return False
    counted = found.attribute.startswith("running_") or found.attribute == "num_batches_tracked"
    return bool(written) or (counted and isinstance(found.owner, _NormBase))


def _module_class(module: "nn.Module") -> ModuleClass:
    cls = type(module)
    ancestors = {qualified(base) for base in cls.__mro__}
    version = getattr(cls, "_version", None)
    return ModuleClass(
        name=qualified(cls),
        version=version if isinstance(version, int) else None,
        custom_load=_loads_its_own_way(module),
        auxiliary=not ancestors.isdisjoint(_AUXILIARY),
        attributes=frozenset(attributes(module)),
    )


def _loads_its_own_way(module: "nn.Module") -> bool:
    overriding = [c for c in below_module(type(module)) if "_load_from_state_dict" in vars(c)]
    if any(not is_torchs(cls) for cls in overriding):
        return True
    hooks = module._load_state_dict_pre_hooks.values()  # noqa: SLF001
    return any(not _is_torchs_hook(getattr(hook, "hook", hook)) for hook in hooks)


def _is_torchs_hook(hook: Any) -> bool:
    function = getattr(hook, "func", hook)
    module = getattr(function, "__module__", None) or type(function).__module__
    return str(module).partition(".")[0] == "torch"


def _in_words(value: object) -> str:
    """Return a short description of a state_dict value that is not a tensor."""
    if isinstance(value, bool | int | float | None):
        return repr(value)
    name = type(value).__name__
    if isinstance(value, str | bytes | Mapping | list | tuple | set):
        return f"{name} of {len(value)}"
    return name


def _natural(key: str) -> list[tuple[int, str]]:
    """Return a sort key for paths in which "2" precedes "10"."""
    parts = re.split(r"(\d+)", key)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]
