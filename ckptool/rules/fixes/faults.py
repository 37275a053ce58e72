"""Findings about a module -> AttributeFaults: what an edit of its source would repair."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Final

from ckptool.migration.codemod.attribute_fault import AttributeFault, ContainerForm, FaultKind
from ckptool.model import Kind, ModuleInfo, ModuleTensor
from ckptool.rules.fixes.source_lines import get_attribute_name, is_rebuilt
from ckptool.rules.registry import Finding
from ckptool.verification.result import DeviceMismatch

FIXABLE: Final = ("CK101", "CK102", "CK103", "CK104", "CK108", "CK110", "CK111")
"""Codes of the findings that an edit of the source repairs."""
DEVICE_FAULT: Final = "CK110"
"""Code of findings about tensors on the wrong device."""
_LIST_ITEM: Final = re.compile(r"\[\d+\]")
_DICT_ITEM: Final = re.compile(r"\[('(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\")\]")
"""An item of a dict with string keys: `['a']`, `["it's"]`."""
_CREATED: Final = re.compile(r"created at (.+:\d+)")
_VALUE_KINDS: Final = {
    Kind.ATTRIBUTE: FaultKind.TENSOR,
    Kind.CLASS_ATTRIBUTE: FaultKind.TENSOR,
    Kind.ARRAY: FaultKind.ARRAY,
}
_ELEMENT_KINDS: Final = {
    Kind.MODULE: FaultKind.MODULES,
    Kind.PARAMETER: FaultKind.PARAMETERS,
    Kind.CONTAINER: FaultKind.TENSORS,
}


def collect_faults(
    findings: Iterable[Finding], module_info: ModuleInfo, parameter_names: Iterable[str] = ()
) -> list[AttributeFault]:
    """Return the faults that findings of the rules in FIXABLE are about, one for each attribute.

    Args:
        findings: of the module.
        module_info: its description.
        parameter_names: attributes, "scale" or "encoder.scale", that are to be parameters.
    """
    codes_by_key: dict[str, list[str]] = defaultdict(list)
    for finding in findings:
        if finding.rule.code in FIXABLE:
            codes_by_key[finding.key].append(finding.rule.code)
    groups: dict[str, list[str]] = defaultdict(list)
    for key in codes_by_key:
        groups[_get_attribute_path(key)].append(key)
    return [
        _build_fault(path, keys, codes_by_key, module_info, {*parameter_names})
        for path, keys in groups.items()
    ]


def collect_created_tensors(mismatches: Iterable[DeviceMismatch]) -> list[AttributeFault]:
    """Return the lines of forward that create a tensor on the CPU which the device refuses."""
    faults: dict[str, AttributeFault] = {}
    for mismatch in mismatches:
        match = _CREATED.search(mismatch.description)
        if match and not mismatch.attribute:
            faults.setdefault(
                match[1],
                AttributeFault(
                    FaultKind.CREATED_TENSOR, (DEVICE_FAULT,), (match[1],), "", "", match[1]
                ),
            )
    return list(faults.values())


def _build_fault(
    path: str,
    keys: list[str],
    codes_by_key: Mapping[str, list[str]],
    module_info: ModuleInfo,
    parameter_names: set[str],
) -> AttributeFault:
    module_tensors = [
        module_tensor
        for module_tensor in module_info.unsaved_tensors.values()
        if _get_attribute_path(module_tensor.key) == path
    ]
    first = module_tensors[0]
    remainders = {key.removeprefix(path) for key in keys}
    kind = _choose_kind(first, remainders)
    if kind is FaultKind.TENSOR and parameter_names & {path, get_attribute_name(path)}:
        kind = FaultKind.PARAMETER
    codes = dict.fromkeys(code for key in keys for code in codes_by_key[key])
    return AttributeFault(
        kind=kind,
        codes=tuple(codes),
        keys=tuple(keys),
        owner=_find_owner(path, module_info) or first.owner,
        attribute=get_attribute_name(path),
        location=next((t.assigned_at for t in module_tensors if t.assigned_at), ""),
        form=_choose_form(first, remainders),
        is_persistent=not all(map(is_rebuilt, module_tensors)),
        shared_with=_find_shared(path, module_tensors, module_info),
        is_class_attribute=first.kind is Kind.CLASS_ATTRIBUTE,
    )


def _choose_kind(module_tensor: ModuleTensor, remainders: set[str]) -> FaultKind:
    if remainders == {""}:
        return _VALUE_KINDS.get(module_tensor.kind, FaultKind.TENSOR)
    return _ELEMENT_KINDS.get(module_tensor.kind, FaultKind.TENSORS)


def _choose_form(module_tensor: ModuleTensor, remainders: set[str]) -> ContainerForm | None:
    """Return the form of a container, None if there is none; arrays have no container in torch."""
    if remainders == {""}:
        return None
    if module_tensor.kind is Kind.ARRAY:
        return ContainerForm.OTHER
    if all(map(_LIST_ITEM.fullmatch, remainders)):
        return ContainerForm.LIST
    return ContainerForm.DICT if all(map(_DICT_ITEM.fullmatch, remainders)) else ContainerForm.OTHER


def _get_attribute_path(key: str) -> str:
    """Return the path of the attribute: "net.banks" of "net.banks['k']"."""
    return key.partition("[")[0]


def _find_owner(path: str, module_info: ModuleInfo) -> str:
    module_class = module_info.modules.get(path.rpartition(".")[0])
    return module_class.name if module_class else ""


def _find_shared(path: str, module_tensors: list[ModuleTensor], module_info: ModuleInfo) -> str:
    """Return the path of other state with the memory of one of the tensors, "" for none."""
    storages = {
        module_tensor.tensor.storage.key: module_tensor.key
        for module_tensor in module_tensors
        if module_tensor.tensor.storage is not None and module_tensor.tensor.numel
    }
    is_constant = all(t.kind in _VALUE_KINDS and is_rebuilt(t) for t in module_tensors)
    for other in module_info.tensors.values():
        storage = other.tensor.storage
        is_other = _get_attribute_path(other.key) != path
        if is_constant and other.kind in _VALUE_KINDS and is_rebuilt(other):
            continue  # nothing writes what the two have in common, so that a move may part them
        if storage is not None and is_other and other.tensor.numel and storage.key in storages:
            return other.key
    return ""
