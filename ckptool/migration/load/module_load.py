"""Tensors -> a live module, by its own load_state_dict; undone where that raises."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch

from ckptool.errors import PlanError
from ckptool.migration.load.file_copies import ChunkedTensor, FileCopies, MappedFile
from ckptool.modules.live.load_call import LoadedKeys, call_load_state_dict
from ckptool.modules.live.registered import list_members, list_registered
from ckptool.modules.tensors.elements import have_same_bytes
from ckptool.modules.user_code import format_exception_line
from ckptool.phrases import MAX_NAMED, join_limited, pluralize, quote_code
from ckptool.verification.loading.loading_code import loads_by_own_code

if TYPE_CHECKING:
    from torch import Tensor, nn

_MAX_SMALL_NBYTES: Final = 8 << 20
"""Size of files up to which threads gain nothing, and mapped pages are few."""


def load_into_module(
    module: "nn.Module",
    state_dict: Mapping[str, Any],
    files: Sequence[MappedFile],
    chunked: Sequence[ChunkedTensor] = (),
    *,
    strict: bool,
    assign: bool,
) -> LoadedKeys:
    """Call `load_state_dict`; where it raises, put back all that can be put back.

    With `assign`, torch makes a parameter of each name; what was tied is tied again after it.

    Tensors that torch overwrites in place are copied before only if code of the module's own loads
    them: torch's code was asked beforehand, and does not raise.

    Args:
        module: changed in place.
        state_dict: lazy tensors of mapped files.
        files: these files.
        chunked: tensors in chunks, of which `state_dict` has the stand-ins; only where nothing but
            torch's copying takes part.
        strict: as of `load_state_dict`.
        assign: the same.

    Raises:
        PlanError: it raised; the message says what of the module is not as it was.
    """
    has_own_code = loads_by_own_code(module)
    before = _ModuleState.record(module, with_values=has_own_code)
    is_small = sum(len(file.pages) for file in files) <= _MAX_SMALL_NBYTES
    puts_off = bool(chunked) or not (has_own_code or assign or is_small)
    try:
        with FileCopies(files, chunked) if puts_off else nullcontext():
            keys = call_load_state_dict(module, state_dict, strict=strict, assign=assign)
    except Exception as error:
        remark = before.restore(module)
        raise PlanError(f"{format_exception_line(error)}; {remark}") from error
    except BaseException:  # an interrupt ends the program, and is not ours to replace
        before.restore(module)
        raise
    if assign:
        _tie_again(module, before)
    return keys


@dataclass(frozen=True, slots=True, eq=False)
class _ModuleState:
    """What a module was before a load."""

    attributes: "list[tuple[nn.Module, dict[str, Any]]]"
    """Each sub-module with a copy of its `__dict__`, in which the registries are copies too."""
    versions: "dict[str, tuple[Tensor, int]]"
    """Key -> tensor and torch's count of the writes into it."""
    values: "dict[str, Tensor]"
    """Key -> copy of the elements; empty if none were made."""

    @classmethod
    def record(cls, module: "nn.Module", *, with_values: bool) -> "_ModuleState":
        tensors = {key: tensor for key, tensor, *_ in list_registered(module)}
        return cls(
            [(member, _copy_attributes(member)) for _, member in list_members(module)],
            {key: (tensor, _read_version(tensor)) for key, tensor in tensors.items()},
            {key: tensor.detach().clone() for key, tensor in tensors.items()}
            if with_values
            else {},
        )

    def restore(self, module: "nn.Module") -> str:
        """Put back what can be; return a clause on what is not as it was."""
        for member, attributes in self.attributes:
            vars(member).clear()
            vars(member).update(attributes)
        written = [
            key
            for key, (tensor, version) in self.versions.items()
            if _read_version(tensor) != version
        ]
        with torch.no_grad():
            for key in written:
                if key in self.values:
                    self.versions[key][0].copy_(self.values[key])
        lost = [key for key in written if key not in self.values]
        if lost:
            names = join_limited(lost, MAX_NAMED, quote_code)
            return f"{pluralize(len(lost), 'tensor')} had been overwritten by then: {names}"
        if loads_by_own_code(module):
            return (
                "its tensors and attributes are as before; what its own code changed in place of "
                "other objects cannot be undone"
            )
        return "the module is unchanged"


def _tie_again(module: "nn.Module", before: _ModuleState) -> None:
    """Give tied names one parameter again, where those that were assigned have equal elements."""
    groups: dict[int, list[str]] = {}
    for key, (tensor, _) in before.versions.items():
        groups.setdefault(id(tensor), []).append(key)
    for first, *others in groups.values():
        for key in others:
            _share_tensor(module, key, first)


def _share_tensor(module: "nn.Module", key: str, first_key: str) -> None:
    (owner, name), (first_owner, first_name) = (
        (module.get_submodule(path), name)
        for path, _, name in (key.rpartition("."), first_key.rpartition("."))
    )
    tensor, first = getattr(owner, name), getattr(first_owner, first_name)
    if tensor is not first and have_same_bytes(tensor, first):
        setattr(owner, name, first)


def _copy_attributes(member: "nn.Module") -> dict[str, Any]:
    attributes = vars(member).copy()
    for registry in ("_parameters", "_buffers", "_modules"):
        if isinstance(attributes.get(registry), dict):  # a ScriptModule has others, or none
            attributes[registry] = attributes[registry].copy()
    return attributes


def _read_version(tensor: "Tensor") -> int:
    return -1 if tensor.is_inference() else tensor._version  # noqa: SLF001
