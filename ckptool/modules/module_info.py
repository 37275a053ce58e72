"""ModuleWalk, state_dict() and ProbeResults -> ModuleInfo."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from ckptool.errors import ModuleError
from ckptool.model import (
    Constancy,
    Kind,
    ModuleClass,
    ModuleInfo,
    ModuleTensor,
    Preview,
    Skipped,
    natural_sort_key,
)
from ckptool.modules.assignment_locations import AssignmentLocations, read_assignment_target
from ckptool.modules.computed_parameters import find_computed_parameters, get_spectral_norm_dim
from ckptool.modules.meta_parameters import MetaParameters
from ckptool.modules.move_probe import MoveBehavior, is_floating_dtype
from ckptool.modules.source.outside_writes import OutsideWrites
from ckptool.modules.source.source_analysis import SourceAnalysis
from ckptool.modules.tensors.elements import (
    compute_fingerprint,
    compute_half_precision_fingerprints,
    get_dtype_name,
    has_integer_values,
    iter_nested_tensors,
    preview_values,
)
from ckptool.modules.tensors.fill import find_blank_fill
from ckptool.modules.tensors.tensor_info import ModuleStorages, describe_tensor
from ckptool.modules.user_code import UserCodeError, user_code
from ckptool.modules.walk import (
    MAX_DEPTH,
    METRIC_CLASS,
    FoundTensor,
    ModuleWalk,
    get_qualified_name,
    is_set_from_outside,
    is_torch_class,
    list_attributes,
    list_classes_below_module,
)
from ckptool.modules.world.member_lists import check_state_dict

if TYPE_CHECKING:
    from torch import Tensor, nn

_MAX_PREVIEWS: Final = 48
"""Maximum number of previews of saved tensors, and of unsaved tensors."""
_AUXILIARY_CLASSES = ("torch.nn.modules.loss._Loss", METRIC_CLASS, "lpips.lpips.LPIPS")


@dataclass(frozen=True, slots=True)
class ProbeResults:
    """Results of building and probing a module, by path of its tensors."""

    constancy: Mapping[str, Constancy] = field(default_factory=dict)
    move_behavior: Mapping[str, MoveBehavior] = field(default_factory=dict)
    meta_parameters: MetaParameters = field(default_factory=MetaParameters)
    assignment_locations: AssignmentLocations | None = None
    skipped: tuple[Skipped, ...] = ()


def build_module_info(
    module: "nn.Module", module_walk: ModuleWalk, target: str, probe_results: ProbeResults
) -> ModuleInfo:
    """Describe the tensors of `module_walk` and of the state_dict of `module`.

    Raises:
        ModuleError: its state_dict() raises, or returns no mapping.
    """
    tensors, non_tensors = split_tensors(call_state_dict(module, target))
    describer = _ModuleDescriber(module_walk, tensors, non_tensors, probe_results)
    saved = list(describer.iter_saved())
    unsaved = sorted(
        describer.iter_unsaved(), key=lambda module_tensor: natural_sort_key(module_tensor.key)
    )
    unsearched_paths = [
        Skipped(path, f"containers more than {MAX_DEPTH} deep are not searched")
        for path in module_walk.unsearched_paths
    ]
    return ModuleInfo(
        target=target,
        tensors={module_tensor.key: module_tensor for module_tensor in (*saved, *unsaved)},
        non_tensors={key: describe_non_tensor(value) for key, value in non_tensors.items()},
        none_buffers=module_walk.none_buffers,
        none_buffer_writes=_find_none_buffer_writes(module_walk),
        modules={prefix: describe_class(member) for prefix, member in module_walk.modules},
        hidden_modules=module_walk.hidden_modules,
        skipped=(*probe_results.skipped, *unsearched_paths),
    )


def _find_none_buffer_writes(module_walk: ModuleWalk) -> dict[str, str]:
    """Return key -> "file:line" that assigns a persistent buffer that is None, "" if none does.

    Without those that torch's classes, also below a subclass, register for options that stay off.
    """
    source_analysis, members = SourceAnalysis(), dict(module_walk.modules)
    writes: dict[str, str] = {}
    for key in module_walk.none_buffers:
        prefix, _, name = key.rpartition(".")
        owner = members[prefix]
        is_persistent = name not in owner._non_persistent_buffers_set  # noqa: SLF001
        if is_persistent and not _is_torch_option(source_analysis, type(owner), name):
            writes[key] = source_analysis.find_write(type(owner), name)
    return writes


def _is_torch_option(
    source_analysis: SourceAnalysis, cls: type["nn.Module"], attribute: str
) -> bool:
    """Whether only the code of a class of torch registers and assigns the attribute."""
    torch_class = next(base for base in cls.__mro__ if is_torch_class(base))
    find_assignment, find_write = source_analysis.find_assignment, source_analysis.find_write
    return cls is torch_class or (
        find_assignment(torch_class, attribute) == find_assignment(cls, attribute) != ""
        and find_write(torch_class, attribute) == find_write(cls, attribute)
    )


def call_state_dict(module: "nn.Module", target: str) -> Mapping[Any, Any]:
    """Return `module.state_dict(keep_vars=True)`, without keep_vars if it does not take it.

    Raises:
        ModuleError: it raises, or does not return a mapping.
    """
    state_dict: Callable[..., Any] = module.state_dict
    try:
        with user_code():
            result = state_dict(**_make_keep_vars(state_dict))
            if isinstance(result, Mapping):
                check_state_dict(module, result)
    except UserCodeError as error:
        raise ModuleError(target, f"its state_dict() raised {error}") from error
    if not isinstance(result, Mapping):
        raise ModuleError(
            target, f"its state_dict() returned a {type(result).__name__}, not a mapping"
        )
    return result


def _make_keep_vars(state_dict: Callable[..., Any]) -> dict[str, bool]:
    """Return {"keep_vars": True} if `state_dict` accepts it: it then returns the parameters."""
    parameters = inspect.signature(state_dict).parameters.values()
    accepts_keep_vars = any(p.name == "keep_vars" or p.kind is p.VAR_KEYWORD for p in parameters)
    return {"keep_vars": True} if accepts_keep_vars else {}


def split_tensors(state: Mapping[Any, Any]) -> "tuple[dict[str, Tensor], dict[str, object]]":
    from torch import Tensor

    tensors = {str(key): value for key, value in state.items() if isinstance(value, Tensor)}
    return tensors, {str(k): v for k, v in state.items() if not isinstance(v, Tensor)}


class _ModuleDescriber:
    """Matches the tensors of a module with the values of its state_dict, and describes both."""

    def __init__(
        self,
        module_walk: ModuleWalk,
        tensors: "dict[str, Tensor]",
        non_tensors: dict[str, object],
        probe_results: ProbeResults,
    ) -> None:
        self._module_walk = module_walk
        self._saved_values = tensors
        self._probe_results = probe_results
        self._source_analysis = SourceAnalysis()
        self._outside_writes = OutsideWrites(module_walk, self._source_analysis)
        self._storages = ModuleStorages(probe_results.meta_parameters)
        self._previews_left = {True: _MAX_PREVIEWS, False: _MAX_PREVIEWS}
        """Number of previews left for saved (True) and unsaved (False) tensors."""
        self._saved_paths: set[str] = set()
        """Paths of tensors that are in the state_dict."""
        self._keys_by_view = {
            self._storages.identify_view(tensor): key for key, tensor in tensors.items()
        }
        self._nested_views = {
            self._storages.identify_view(tensor) for tensor in iter_nested_tensors(non_tensors, 4)
        }
        self._keys_by_storage = self._map_storages_to_keys()
        self._registered_ids = {id(f.value) for f in module_walk.tensors if f.is_registered}

    def iter_saved(self) -> Iterator[ModuleTensor]:
        """Yield the tensors of the state_dict, in its order."""
        by_path = {found_tensor.path: found_tensor for found_tensor in self._module_walk.tensors}
        by_view = {
            self._storages.identify_view(f.value): f
            for f in self._module_walk.tensors
            if f.is_registered
        }
        for key, tensor in self._saved_values.items():
            found_tensor = by_path.get(key) or by_view.get(self._storages.identify_view(tensor))
            if found_tensor is not None:
                self._saved_paths.add(found_tensor.path)
            yield self._describe_saved(key, tensor, found_tensor)

    def iter_unsaved(self) -> Iterator[ModuleTensor]:
        """Yield the tensors outside the state_dict, except aliases that move with their owner."""
        for found_tensor in self._module_walk.tensors:
            if found_tensor.path in self._saved_paths or self._is_nested_in_state_dict(
                found_tensor
            ):
                continue
            alias = self._find_alias(found_tensor)
            if found_tensor.is_registered or not alias or not self._follows_owner(found_tensor):
                yield self._describe_found(
                    found_tensor, found_tensor.path, found_tensor.value, alias, is_saved=False
                )

    def _map_storages_to_keys(self) -> dict[int, str]:
        """Return storage -> key of its first saved or registered tensor."""
        values_by_key = [*self._saved_values.items()]
        values_by_key += [(f.path, f.value) for f in self._module_walk.tensors if f.is_registered]
        keys: dict[int, str] = {}
        for key, tensor in values_by_key:
            identity = self._storages.identify_storage(tensor)
            if identity is not None:
                keys.setdefault(identity, key)
        return keys

    def _is_nested_in_state_dict(self, found_tensor: FoundTensor) -> bool:
        """Whether a container in the state_dict holds the tensor, as the lists of metrics do."""
        return (
            _is_tensor(found_tensor.value)
            and self._storages.identify_view(found_tensor.value) in self._nested_views
        )

    def _find_alias(self, found_tensor: FoundTensor) -> str:
        if not _is_tensor(found_tensor.value):
            return ""
        if found_tensor.is_registered:
            return self._keys_by_view.get(self._storages.identify_view(found_tensor.value), "")
        identity = self._storages.identify_storage(found_tensor.value)
        return self._keys_by_storage.get(identity, "") if identity is not None else ""

    def _follows_owner(self, found_tensor: FoundTensor) -> bool:
        """Whether an alias moves with its registered tensor.

        Other references to a registered parameter do: on a real device `.to()` changes the
        parameter in place, which it cannot on meta.
        """
        from torch import nn

        is_registered_parameter = id(
            found_tensor.value
        ) in self._registered_ids or self._probe_results.meta_parameters.is_replaced(
            found_tensor.value
        )
        if isinstance(found_tensor.value, nn.Parameter) and is_registered_parameter:
            return True
        return self._get_move_behavior(found_tensor).follows_to

    def _get_move_behavior(self, found_tensor: FoundTensor) -> MoveBehavior:
        default = MoveBehavior(
            found_tensor.is_registered,
            found_tensor.is_registered or not _is_floating(found_tensor.value),
        )
        return self._probe_results.move_behavior.get(found_tensor.path, default)

    def _describe_saved(
        self, key: str, tensor: "Tensor", found_tensor: FoundTensor | None
    ) -> ModuleTensor:
        if found_tensor is not None:
            return self._describe_found(found_tensor, key, tensor, "", is_saved=True)
        # Created by state_dict(): a hook, an override, or an extra state that is a tensor.
        return ModuleTensor(
            tensor=describe_tensor(key, tensor, Kind.ATTRIBUTE, self._storages),
            kind=Kind.ATTRIBUTE,
            owner=get_qualified_name(type(self._module_walk.modules[0][1])),
            is_saved=True,
            constancy=Constancy.UNKNOWN,
            follows_to=True,
            follows_dtype=True,
            fingerprint=compute_fingerprint(tensor),
        )

    def _describe_found(
        self, found_tensor: FoundTensor, key: str, value: Any, alias: str, *, is_saved: bool
    ) -> ModuleTensor:
        """Describe a tensor that was found; `alias` is the key whose storage it shares, or ""."""
        cls, move_behavior = type(found_tensor.owner), self._get_move_behavior(found_tensor)
        is_foreign = not found_tensor.is_registered and is_set_from_outside(
            found_tensor.owner, found_tensor.attribute
        )
        own_write = (
            "" if is_foreign else self._source_analysis.find_write(cls, found_tensor.attribute)
        )
        written_at = own_write or self._outside_writes.find_write(found_tensor)
        assigned_at = self._find_assignment(found_tensor)
        is_statistic = _is_statistic(found_tensor, written_at)
        fingerprint = compute_fingerprint(value)
        blank_fill = "" if found_tensor.kind is Kind.PARAMETER else find_blank_fill(value)
        return ModuleTensor(
            tensor=describe_tensor(key, value, found_tensor.kind, self._storages),
            kind=found_tensor.kind,
            owner=get_qualified_name(cls),
            is_saved=is_saved,
            constancy=self._probe_results.constancy.get(found_tensor.path, Constancy.UNKNOWN),
            follows_to=move_behavior.follows_to,
            follows_dtype=move_behavior.follows_dtype,
            assigned_at=assigned_at,
            assigned_to="" if is_saved else read_assignment_target(assigned_at, found_tensor.path),
            used_at=self._source_analysis.find_use(cls, found_tensor.attribute),
            moved_at=self._source_analysis.find_move(cls, found_tensor.attribute),
            is_cast_on_use=self._source_analysis.is_cast_on_use(cls, found_tensor.attribute),
            written_at=written_at,
            alias_of=alias,
            is_statistic=is_statistic,
            blank_fill=blank_fill,
            is_computed_from_arguments=bool(blank_fill)
            and self._source_analysis.is_computed_from_arguments(cls, found_tensor.attribute),
            fingerprint=fingerprint,
            has_integer_values=bool(fingerprint)
            and found_tensor.kind is not Kind.PARAMETER
            and has_integer_values(value),
            preview=None
            if is_statistic
            else self._take_preview(found_tensor.kind, value, is_saved=is_saved),
            half_precision_fingerprints=compute_half_precision_fingerprints(value)
            if found_tensor.kind is Kind.BUFFER
            else {},
        )

    def _take_preview(self, kind: Kind, value: Any, *, is_saved: bool) -> Preview | None:
        if kind is Kind.PARAMETER or not self._previews_left[is_saved]:
            return None
        tensor_preview = preview_values(value)
        self._previews_left[is_saved] -= tensor_preview is not None
        return tensor_preview

    def _find_assignment(self, found_tensor: FoundTensor) -> str:
        locations = self._probe_results.assignment_locations
        location = (
            locations.get_location(found_tensor.owner, found_tensor.attribute)
            if locations is not None
            else ""
        )
        return location or self._source_analysis.find_assignment(
            type(found_tensor.owner), found_tensor.attribute
        )


def _is_tensor(value: object) -> bool:
    from torch import Tensor

    return isinstance(value, Tensor)


def _is_floating(value: Any) -> bool:
    return is_floating_dtype(get_dtype_name(value))


def _is_statistic(found_tensor: FoundTensor, written_at: str) -> bool:
    from torch.nn.modules.batchnorm import _NormBase

    if found_tensor.kind not in {Kind.BUFFER, Kind.NON_PERSISTENT_BUFFER}:
        return False
    is_running_statistic = (
        found_tensor.attribute.startswith("running_")
        or found_tensor.attribute == "num_batches_tracked"
    )
    return bool(written_at) or (is_running_statistic and isinstance(found_tensor.owner, _NormBase))


def describe_class(module: "nn.Module") -> ModuleClass:
    cls = type(module)
    ancestors = {get_qualified_name(base) for base in cls.__mro__}
    version = getattr(cls, "_version", None)
    return ModuleClass(
        name=get_qualified_name(cls),
        version=version if isinstance(version, int) else None,
        has_custom_load=_has_custom_load(module),
        loading_class=_find_loading_class(cls),
        is_auxiliary=not ancestors.isdisjoint(_AUXILIARY_CLASSES),
        attributes=frozenset(list_attributes(module)),
        spectral_norm_dim=get_spectral_norm_dim(module),
        computed_parameters=find_computed_parameters(module),
    )


def _has_custom_load(module: "nn.Module") -> bool:
    overriding_classes = [
        c for c in list_classes_below_module(type(module)) if "_load_from_state_dict" in vars(c)
    ]
    if any(not is_torch_class(cls) for cls in overriding_classes):
        return True
    hooks = module._load_state_dict_pre_hooks.values()  # noqa: SLF001
    return any(not _is_torch_hook(getattr(hook, "hook", hook)) for hook in hooks)


def _find_loading_class(cls: type["nn.Module"]) -> str:
    """Return the qualified name of the class whose `_load_from_state_dict` it has."""
    return next(
        get_qualified_name(base) for base in cls.__mro__ if "_load_from_state_dict" in vars(base)
    )


def _is_torch_hook(hook: Any) -> bool:
    function = getattr(hook, "func", hook)
    module = getattr(function, "__module__", None) or type(function).__module__
    return str(module).partition(".")[0] == "torch"


def describe_non_tensor(value: object) -> str:
    """Return a short description of a state_dict value that is not a tensor."""
    if isinstance(value, bool | int | float | None):
        return repr(value)
    name = type(value).__name__
    if isinstance(value, str | bytes | Mapping | list | tuple | set):
        return f"{name} of {len(value)}"
    return name
