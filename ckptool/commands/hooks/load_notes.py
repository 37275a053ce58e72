"""A load that failed or left keys out -> the note that says why, and what to do."""

import sys
from collections.abc import Iterator, Mapping
from inspect import Parameter, signature
from pathlib import Path
from typing import Any, Final

from msgspec.structs import replace
from torch import Tensor, nn

from ckptool.commands.hooks.file_origins import StateOrigin
from ckptool.compare.module_comparison import build_module_diff
from ckptool.model import Checkpoint, Container, Kind, StateDict
from ckptool.modules import describe_module
from ckptool.modules.target.rebuild import find_rebuild
from ckptool.modules.tensors.tensor_info import ModuleStorages, describe_tensor
from ckptool.phrases import format_literal
from ckptool.rules import Finding, run_rules
from ckptool.rules.causes import attribute_findings
from ckptool.rules.known_errors.explain import explain_log
from ckptool.rules.known_errors.key_lists import KeyDifference
from ckptool.rules.known_errors.key_patterns import explain_keys
from ckptool.rules.known_errors.known_error import (
    UNNAMED_CHECKPOINT,
    UNNAMED_MODULE,
    Advice,
    Certainty,
    ErrorFacts,
    Explanation,
)
from ckptool.rules.known_errors.shape_patterns import explain_shapes
from ckptool.rules.load.renames import WRAPPER_PREFIX

_MAX_CAUSES: Final = 3
_MAX_STATE_DEPTH: Final = 3
_PLACEHOLDERS: Final = (UNNAMED_CHECKPOINT, UNNAMED_MODULE, "_FOLDER")


def format_error_note(error: BaseException, path: str) -> str:
    """Return the note for an error of a loading function; "" if the error is not a known one."""
    errors = explain_log(f"{type(error).__name__}: {error}", ErrorFacts(checkpoint=path))
    return _format_note([e.explanation for e in errors])


def format_load_note(
    module: nn.Module,
    state_dict: Mapping[str, Any],
    difference: KeyDifference,
    origin: StateOrigin | None,
) -> str:
    """Return the note for keys and shapes that load_state_dict reports; "" without any.

    Args:
        module: the module that was loaded into.
        state_dict: what was loaded.
        difference: what load_state_dict reported.
        origin: the file of `state_dict`, None if not known.
    """
    path = origin.path if origin is not None else ""
    facts = ErrorFacts(checkpoint=path, module=_find_target(module))
    explanations = [*explain_keys(difference, facts), *explain_shapes(difference, facts)]
    if all(explanation.certainty is Certainty.CERTAIN for explanation in explanations):
        return _format_note(explanations)
    findings = _find_causes(module, state_dict, origin)
    return _format_note([_add_comparison(e, findings) for e in explanations])


def _add_comparison(explanation: Explanation, findings: list[Finding]) -> Explanation:
    """Return the explanation with what the comparison of names, shapes and values says of it."""
    if explanation.name == "wrapped-file" and WRAPPER_PREFIX in {f.rule.code for f in findings}:
        return replace(explanation, certainty=Certainty.CERTAIN)
    if explanation.certainty is not Certainty.POSSIBLE or not findings:
        return explanation
    finding = findings[0]
    advice = Advice(finding.fix)
    certainty = Certainty.PROBABLE
    return Explanation(finding.rule.name, finding.summary, certainty, (advice,))


def _find_causes(
    module: nn.Module, state_dict: Mapping[str, Any], origin: StateOrigin | None
) -> list[Finding]:
    """Return the findings that say what is wrong with the load, the gravest first."""
    name = type(module).__qualname__
    checkpoint = _describe_state_dict(state_dict, origin)
    findings = run_rules([build_module_diff(checkpoint, describe_module(module, name), "")])
    attributions = attribute_findings(findings)
    return [
        finding
        for finding, attribution in zip(findings, attributions, strict=True)
        if not attribution.is_consequence
    ]


def _describe_state_dict(state_dict: Mapping[str, Any], origin: StateOrigin | None) -> Checkpoint:
    """Describe a state_dict in memory, without its values, as a file with it is described."""
    storages = ModuleStorages()
    path = Path(origin.path if origin is not None else UNNAMED_CHECKPOINT)
    states = tuple(_iter_states(state_dict, "", storages))
    return Checkpoint(path, Container.TORCH_ZIP, 0, states)


def _iter_states(
    state_dict: Mapping[str, Any], at: str, storages: ModuleStorages
) -> Iterator[StateDict]:
    tensors = {
        str(key): describe_tensor(str(key), value, Kind.PARAMETER, storages)
        for key, value in state_dict.items()
        if isinstance(value, Tensor)
    }
    nested = {str(key): value for key, value in state_dict.items() if isinstance(value, Mapping)}
    others = {
        str(key): type(value).__name__
        for key, value in state_dict.items()
        if str(key) not in tensors and str(key) not in nested
    }
    metadata = getattr(state_dict, "_metadata", None)
    versions = None
    if isinstance(metadata, Mapping):
        versions = {str(k): v.get("version") for k, v in metadata.items() if isinstance(v, Mapping)}
    if tensors or not at:
        yield StateDict(at, tensors, versions=versions, non_tensors=others)
    if at.count(".") < _MAX_STATE_DEPTH:
        for key, value in nested.items():
            yield from _iter_states(value, f"{at}.{key}" if at else key, storages)


def _find_target(module: nn.Module) -> str:
    """Return what `-m` takes to build a module like this one, "" if that is not known."""
    cls = type(module)
    home = sys.modules.get(cls.__module__)
    if cls.__module__ == "__main__" or getattr(home, cls.__qualname__, None) is not cls:
        return ""
    if not _takes_named_arguments(cls):
        return ""
    rebuild = find_rebuild(module, None, None)
    if rebuild is None or rebuild.is_guess:
        return ""
    arguments = {name: format_literal(value) for name, value in (rebuild.kwargs or {}).items()}
    if any("..." in literal for literal in arguments.values()):
        return ""
    call = ", ".join(f"{name}={literal}" for name, literal in arguments.items())
    return f"{cls.__module__}:{cls.__qualname__}" + (f"({call})" if call else "")


def _takes_named_arguments(cls: type) -> bool:
    kinds = {parameter.kind for parameter in signature(cls).parameters.values()}
    return not kinds & {Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD, Parameter.POSITIONAL_ONLY}


def _format_note(explanations: list[Explanation]) -> str:
    lines = []
    for explanation in explanations[:_MAX_CAUSES]:
        lines.append(f"ckptool: {explanation.cause} ({explanation.certainty})")
        usable = [advice for advice in explanation.advice if _is_usable(advice)]
        steps = [_format_advice(advice) for advice in usable[:2]]
        lines += [f"  next: {step}" for step in (s.removeprefix("or ") for s in steps[:1])]
        lines += [f"  next: {step}" for step in steps[1:]]
    if len(explanations) > _MAX_CAUSES:
        lines.append(f"ckptool: and {len(explanations) - _MAX_CAUSES} more causes")
    return "\n".join(lines)


def _is_usable(advice: Advice) -> bool:
    """Return whether a command or code can be run as it is, without a placeholder."""
    step = advice.command + advice.code + advice.text
    return not any(placeholder in step for placeholder in _PLACEHOLDERS)


def _format_advice(advice: Advice) -> str:
    step = advice.command or advice.code
    return f"{advice.text}: {step}" if step else advice.text
