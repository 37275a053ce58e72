"""A module and the mapping that it loads -> LoadRecord."""

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

from msgspec import Struct
from msgspec.structs import replace

from ckptool.compare.renames import PrefixRewrite, find_prefix_rewrite
from ckptool.model import TensorInfo
from ckptool.modules.tensors.tensor_parts import is_lazy
from ckptool.modules.walk import get_written_name
from ckptool.tracing.module_states import iter_saved_tensors
from ckptool.tracing.origins import TensorOrigin, TensorOrigins
from ckptool.tracing.records import MAX_KEYS, KeyMismatch, LoadRecord, UnsavedValue

if TYPE_CHECKING:
    from torch import nn


class MappingOrigin(Struct, frozen=True):
    """Where the tensors of a mapping come from."""

    file: str = ""
    at: str = ""
    renamed_count: int = 0


class LoadKeys(Struct, frozen=True):
    """Keys of a mapping against those of a module."""

    missing_keys: tuple[str, ...]
    unexpected_keys: tuple[str, ...]
    mismatches: tuple[KeyMismatch, ...]
    rewrite: PrefixRewrite | None = None
    """Of keys of the mapping to missing ones of the module."""


def find_mapping_origin(mapping: Mapping[str, Any], origins: TensorOrigins) -> MappingOrigin:
    """Return the file and the place that most tensors of `mapping` were read from."""
    from torch import Tensor

    found_origins: dict[str, TensorOrigin] = {}
    for key, value in mapping.items():
        origin = origins.find_origin(value, key) if isinstance(value, Tensor) else None
        if origin is not None:
            found_origins[key] = origin
    if not found_origins:
        return MappingOrigin()
    files = [origin.file for origin in found_origins.values()]
    main_file = max(dict.fromkeys(files), key=files.count)
    in_file = {key: origin for key, origin in found_origins.items() if origin.file == main_file}
    parents = [origin.place[:-1] for origin in in_file.values()]
    parent = max(dict.fromkeys(parents), key=parents.count)
    renamed = sum(origin.place[-1:] != (key,) for key, origin in in_file.items())
    return MappingOrigin(main_file, ".".join(parent), renamed)


def compare_keys(module: "nn.Module", mapping: Mapping[str, Any]) -> LoadKeys:
    """Return what keys and shapes give; torch itself knows what a load without an error left out.

    Shapes are compared in any case: with assign=True, torch takes a tensor of another shape.
    """
    from torch import Tensor

    saved_tensors = dict(iter_saved_tensors(module))
    mismatches = tuple(
        KeyMismatch(key, tuple(value.shape), tuple(saved_tensors[key].shape))
        for key, value in mapping.items()
        if key in saved_tensors
        and isinstance(value, Tensor)
        and tuple(value.shape) != tuple(saved_tensors[key].shape)
    )
    extra_keys = {key for key in mapping if key.endswith("_extra_state")}
    missing = tuple(key for key in saved_tensors if key not in mapping)
    unexpected = tuple(k for k in mapping if k not in saved_tensors and k not in extra_keys)
    rewrite = None
    if missing and unexpected:
        expected, actual = _describe_shapes(saved_tensors), _describe_shapes(mapping)
        rewrite = find_prefix_rewrite(
            [expected[key] for key in missing],
            [actual[key] for key in unexpected if key in actual],
            expected,
            actual,
        )
    return LoadKeys(missing, unexpected, mismatches, rewrite)


def _describe_shapes(values: Mapping[str, Any]) -> dict[str, TensorInfo]:
    """Return the tensors of a state_dict, of which nothing but key and shape is compared."""
    from torch import Tensor

    return {
        key: TensorInfo(key, tuple(value.shape), "", (), 0, None)
        for key, value in values.items()
        if isinstance(value, Tensor) and not is_lazy(value)
    }


def list_ties(module: "nn.Module") -> tuple[tuple[str, ...], ...]:
    """Return the groups of names of `module` that are one tensor."""
    names_by_id: dict[int, list[str]] = {}
    for name, tensor in iter_saved_tensors(module):
        names_by_id.setdefault(id(tensor), []).append(name)
    return tuple(tuple(names) for names in names_by_id.values() if len(names) > 1)


def _list_devices(module: "nn.Module") -> tuple[str, ...]:
    return tuple(sorted({str(tensor.device) for _, tensor in iter_saved_tensors(module)}))


def build_load_record(
    module: "nn.Module",
    keys: LoadKeys,
    origin: MappingOrigin,
    *,
    loader: str,
    where: str,
    is_strict: bool,
    error: str,
    key_count: int,
    unsaved: tuple[UnsavedValue, ...],
    old_ties: Iterable[tuple[str, ...]],
    arguments: dict[str, str] | None,
) -> LoadRecord:
    """Build the record of a load that has ended; lists of keys are cut, their counts are not."""
    ties = {name: group for group in list_ties(module) for name in group}
    return LoadRecord(
        module=get_written_name(module),
        loader=loader,
        file=origin.file,
        at=origin.at,
        where=where,
        is_strict=is_strict,
        error=error,
        key_count=key_count,
        missing_keys=keys.missing_keys[:MAX_KEYS],
        unexpected_keys=keys.unexpected_keys[:MAX_KEYS],
        mismatches=keys.mismatches[:MAX_KEYS],
        missing_count=len(keys.missing_keys),
        unexpected_count=len(keys.unexpected_keys),
        mismatch_count=len(keys.mismatches),
        renamed_count=origin.renamed_count,
        rewrite=_cut_key_map(keys.rewrite),
        rewritten_count=len(keys.rewrite.key_map) if keys.rewrite else 0,
        arguments=arguments,
        unsaved=unsaved,
        devices=_list_devices(module),
        broken_ties=tuple(group for group in old_ties if not {*group} <= {*ties.get(group[0], ())}),
    )


def _cut_key_map(rewrite: PrefixRewrite | None) -> PrefixRewrite | None:
    if rewrite is None:
        return None
    return replace(rewrite, key_map=dict(islice(rewrite.key_map.items(), MAX_KEYS)))
