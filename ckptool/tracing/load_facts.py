"""A module and the mapping that it loads -> LoadRecord."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from msgspec import Struct

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


def compare_keys(
    module: "nn.Module", mapping: Mapping[str, Any], incompatible: Any | None
) -> LoadKeys:
    """Return what torch returned of a load; where it raised, what keys and shapes give.

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
    if incompatible is not None:
        return LoadKeys(
            tuple(incompatible.missing_keys), tuple(incompatible.unexpected_keys), mismatches
        )
    extra_keys = {key for key in mapping if key.endswith("_extra_state")}
    return LoadKeys(
        tuple(key for key in saved_tensors if key not in mapping),
        tuple(key for key in mapping if key not in saved_tensors and key not in extra_keys),
        mismatches,
    )


def list_ties(module: "nn.Module") -> tuple[tuple[str, ...], ...]:
    """Return the groups of names of `module` that are one tensor."""
    names_by_id: dict[int, list[str]] = {}
    for name, tensor in iter_saved_tensors(module):
        names_by_id.setdefault(id(tensor), []).append(name)
    return tuple(tuple(names) for names in names_by_id.values() if len(names) > 1)


def list_devices(module: "nn.Module") -> tuple[str, ...]:
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
        unsaved=unsaved,
        devices=list_devices(module),
        broken_ties=tuple(group for group in old_ties if not {*group} <= {*ties.get(group[0], ())}),
    )
