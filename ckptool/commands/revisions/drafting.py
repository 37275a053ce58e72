"""Recorded state x today's module -> the plan of a new revision, with its values frozen."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from msgspec import Struct
from msgspec.structs import replace

from ckptool.commands.revisions.skeleton import apply_to_skeleton, build_skeleton
from ckptool.errors import PlanError, RevisionError
from ckptool.formats.files.writer import Blob
from ckptool.formats.limits import DEFAULT_LIMITS
from ckptool.formats.safetensors.writer import (
    SAFETENSORS_DTYPES,
    SafetensorsEntry,
    build_header,
    encode_entries,
)
from ckptool.migration.plan.anonymous_file import AnonymousFile
from ckptool.migration.plan.key_operations import InjectTensor
from ckptool.migration.plan.open_decisions import UndecidedError
from ckptool.migration.plan.plan_file import Op, Plan
from ckptool.migration.plan.suggest import PlanChoices, suggest_plan
from ckptool.migration.plan.target_module import ModuleValue
from ckptool.migration.plan.tensor_operations import FLOAT_DTYPES, CastTensors
from ckptool.migration.plan.value_sources import ValueSources
from ckptool.migration.source_guard import SourceGuard
from ckptool.revisions.recorded_state import RecordedState, compare_states, parse_form
from ckptool.revisions.revision import VALUES_FOLDER
from ckptool.values.elements import iter_elements

if TYPE_CHECKING:
    from ckptool.migration.plan.target_module import TargetModule

_FROZEN: Final = frozenset({"constructor", "seed", "file", "npz"})
"""Sources whose value may be another later, or be gone."""
_SHAPED: Final = frozenset({"literal", "zeros"})
"""Sources whose dtype and shape are by default those of today's module, which may change."""

_ANSWERS: Final = (
    "answer with --rename, --inject, --drop or --accept-renames; --save-plan FILE writes the steps "
    "so far, with the questions, for --plan FILE; --python drafts a function"
)


class DraftedPlan(Struct, frozen=True):
    """The steps of a new revision."""

    plan: Plan
    values: Mapping[str, ModuleValue] = {}
    """Key -> the value that the steps take from a file of the chain."""


def draft_plan(
    name: Path,
    start: RecordedState,
    end: RecordedState,
    target_module: "TargetModule",
    choices: PlanChoices,
    parent: str,
) -> DraftedPlan:
    """Return steps that lead from one recorded state to that of today's module.

    Values of files are not looked at: what keys and shapes do not prove is asked.

    Args:
        name: file of the new revision.
        start: what the revision before it records.
        end: state of today's module.
        target_module: today's module.
        choices: answers of the user.
        parent: name of the revision before it, for messages.

    Raises:
        UndecidedError: questions are open.
        RevisionError: the steps lead elsewhere.
    """
    with AnonymousFile() as anonymous_file:
        draft = build_skeleton(Path(f"changes since {parent}"), start)
        sources = ValueSources(target_module, None, anonymous_file, SourceGuard(), DEFAULT_LIMITS)
        try:
            plan = suggest_plan(draft, target_module.module_info, sources, choices).plan
        except UndecidedError as error:
            raise error.add_hint(_ANSWERS) from error
    return check_drafted_plan(name, start, end, plan, target_module)


def check_drafted_plan(
    name: Path,
    start: RecordedState,
    end: RecordedState,
    plan: Plan,
    target_module: "TargetModule",
) -> DraftedPlan:
    """Return a plan with the casts that today's dtypes need, and with its values frozen.

    A value of today's constructor, or of a file elsewhere, is read now: the constructor of later
    code may give another, or none.

    Raises:
        RevisionError: a step does not apply, or the steps lead elsewhere.
    """
    frozen_steps, values = _freeze_values(name, start, plan, target_module)
    steps = [op for op, _ in frozen_steps]
    live_steps = [live for _, live in frozen_steps]
    result = apply_to_skeleton(name, start, live_steps, target_module)
    casts = _build_casts(result, end)
    result = apply_to_skeleton(name, start, [*live_steps, *casts], target_module)
    difference = compare_states(end, result)
    if not difference.is_empty:
        raise RevisionError(
            f"{name.stem}: the steps do not lead to the state of today's module: {difference.text}"
        )
    return DraftedPlan(Plan((*steps, *casts)), values)


def _build_casts(result: RecordedState, end: RecordedState) -> list[Op]:
    """Return the casts that give floating point tensors today's dtypes, as loading would."""
    dtypes: dict[str, list[str]] = {}
    for key, form in end.forms.items():
        expected, actual = parse_form(form), parse_form(result.forms.get(key, form))
        if expected is None or actual is None or expected[0] == actual[0]:
            continue
        if {expected[0], actual[0]} <= FLOAT_DTYPES:
            dtypes.setdefault(expected[0], []).append(key)
    casts: list[Op] = []
    for dtype, keys in dtypes.items():
        others = [k for k in end.forms if k not in keys and _is_other_float(end.forms[k], dtype)]
        names = ["*"] if not others else keys
        casts += [CastTensors(dtype=dtype, keys=key, why="today's dtype") for key in names]
    return casts


def _is_other_float(form: str, dtype: str) -> bool:
    parsed = parse_form(form)
    return parsed is not None and parsed[0] in FLOAT_DTYPES and parsed[0] != dtype


def _freeze_values(
    name: Path, start: RecordedState, plan: Plan, target_module: "TargetModule"
) -> tuple[list[tuple[Op, Op]], dict[str, ModuleValue]]:
    """Return each step as it is written and as it is tried now, and the values of the former.

    Raises:
        RevisionError: a value cannot be read.
    """
    values: dict[str, ModuleValue] = {}
    steps: list[tuple[Op, Op]] = []
    folder = (name.parent / VALUES_FOLDER).absolute()
    with AnonymousFile() as anonymous_file:
        draft = build_skeleton(name, start)
        sources = ValueSources(target_module, None, anonymous_file, SourceGuard(), DEFAULT_LIMITS)
        for op in plan.ops:
            kind = op.source.partition(":")[0] if isinstance(op, InjectTensor) else ""
            if not isinstance(op, InjectTensor) or kind not in _FROZEN | _SHAPED:
                steps.append((op, op))
                continue
            try:
                tensor = sources.locate_value(op, draft)
            except PlanError as error:
                raise RevisionError(f"{name.stem}: {error}") from error
            if kind in _SHAPED or tensor.dtype not in SAFETENSORS_DTYPES:
                shaped = replace(op, dtype=tensor.dtype, shape=tensor.shape)
                steps.append((shaped, shaped))
                continue
            content = b"".join(map(bytes, iter_elements(tensor))) if tensor.numel else b""
            source = "zeros"
            if any(content) or not content:
                values[op.key] = ModuleValue(tensor.dtype, tensor.shape, content)
                source = f"file:{folder}/{name.stem}.safetensors#{op.key}"
            frozen = replace(op, source=source, dtype=tensor.dtype, shape=tensor.shape)
            steps.append((frozen, op))
    return steps, values


def format_values(values: Mapping[str, ModuleValue]) -> bytes:
    """Return a safetensors file of values."""
    entries = [
        SafetensorsEntry(key, value.dtype, value.shape, Blob(len(value.content)))
        for key, value in values.items()
    ]
    header = build_header(encode_entries(entries), {"format": "pt"})
    return header + b"".join(value.content for value in values.values())
