"""ModuleDiff of the derived plan -> OpenDecisions, each with proposed steps."""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from textwrap import wrap
from typing import Final

from ckptool.compare.changes import Missing, Unexpected
from ckptool.compare.explain_key import describe_origin
from ckptool.compare.module_diff import ModuleDiff
from ckptool.errors import PlanError
from ckptool.migration.plan.form_steps import iter_form_questions
from ckptool.migration.plan.key_operations import DropKeys, InjectTensor, RenameKeys
from ckptool.migration.plan.plan_file import Op, Plan, format_plan, format_step
from ckptool.model import Kind, TensorInfo

_MAX_REASONS: Final = 6
"""Maximum number of reasons in one error message."""
_LAYER_NUMBER: Final = re.compile(r"(?<=[.`])\d+(?=[.`])")
_LINE_WIDTH: Final = 100
_MAX_PAIRED_KEYS: Final = 200
"""Maximum number of keys of one shape paired by similar names; above it names do not decide."""
_OPEN_DECISIONS_HEADER: Final = (
    "# Open: what follows is not decided yet. Take the `# ` off the steps that are right, correct\n"
    "# them or write others, and run ckptool migrate again with --plan and this file.\n"
)


@dataclass(frozen=True, slots=True)
class OpenDecision:
    """A decision that the user has to make, with proposed steps."""

    problem: str
    steps: tuple[Op, ...] = ()
    """Proposed steps, unverified."""
    is_covered: bool = False
    """Whether the proposed steps of another decision use the same key."""
    hint: str = ""
    """Option of the command that decides it; a draft of the plan leaves it out."""

    @property
    def reason(self) -> str:
        return f"{self.problem}: {self.hint}" if self.hint else self.problem


class UndecidedError(PlanError):
    """File and module do not determine a plan."""

    def __init__(self, name: str, plan: Plan, decisions: tuple[OpenDecision, ...]) -> None:
        super().__init__(f"{name}: cannot decide: {_summarize_reasons(decisions)}")
        self.plan = plan
        """The part of the plan that could be derived."""
        self.decisions = decisions

    @property
    def draft_plan_text(self) -> str:
        """TOML text of a plan file: the derived steps, then the open decisions as comments."""
        return (
            format_plan(self.plan)
            + "\n"
            + _OPEN_DECISIONS_HEADER
            + "".join(
                _format_commented(decision)
                for decision in self.decisions
                if not decision.is_covered
            )
        )


def find_open_decisions(diff: ModuleDiff) -> tuple[OpenDecision, ...]:
    """Return the open decisions, one for each key or group of keys; () if `diff` loads strictly."""
    explained_keys = {
        k
        for reparametrization in diff.reparametrizations
        for k in (*reparametrization.file_keys, *reparametrization.module_keys)
    }
    explained_keys |= {
        k
        for projection in diff.fused_projections
        for k in (projection.fused_key, *projection.piece_keys)
    }
    proposals = _propose_renames(diff, explained_keys)
    missing_keys = [key for key in diff.missing_keys if key not in explained_keys]
    unexpected_keys = [key for key in diff.unexpected_keys if key not in explained_keys]
    proposed_keys = set(proposals.values())
    return (
        *_iter_form_decisions(diff),
        *(_build_missing_decision(diff, key, proposals.get(key)) for key in missing_keys),
        *(
            _build_unexpected_decision(diff, key, is_covered=key in proposed_keys)
            for key in unexpected_keys
        ),
        *_iter_shape_decisions(diff),
    )


def _iter_form_decisions(diff: ModuleDiff) -> Iterator[OpenDecision]:
    """Yield decisions on parameters and projections that no arithmetic brings to another form."""
    for question in iter_form_questions(diff):
        yield OpenDecision(question.problem, question.steps, hint=question.hint)


def _build_missing_decision(diff: ModuleDiff, key: str, proposal: str | None) -> OpenDecision:
    module_tensor = diff.module.saved_tensors.get(key)
    if module_tensor is None:
        return OpenDecision(f"`{key}` is extra state that the file lacks (CK220)")
    steps: tuple[Op, ...] = (InjectTensor(key=key, source="file:DONOR#KEY"),)
    if proposal is not None:
        why = "a guess: a tensor of this shape that the module has no key for"
        steps = (RenameKeys(key=proposal, to=key, why=why),)
    if module_tensor.kind is Kind.PARAMETER:
        problem = f"`{key}` is a parameter that the file lacks (CK201)"
        if proposal:
            return OpenDecision(f"{problem}: it is `{proposal}` perhaps", steps)
        return OpenDecision(problem, steps, hint=f"--inject {key}=SOURCE")
    return OpenDecision(
        f"`{key}` is a buffer that {describe_origin(module_tensor)}, and it cannot be recovered"
        " from this file (CK202)",
        steps,
        hint=f"--inject {key}=file:DONOR#KEY, or another source",
    )


def _build_unexpected_decision(diff: ModuleDiff, key: str, *, is_covered: bool) -> OpenDecision:
    steps: tuple[Op, ...] = () if is_covered else (DropKeys(key=key),)
    if diff.equal_values.get(key) is False and key in diff.module.unsaved_tensors:
        return OpenDecision(
            f"`{key}` has another value than the module makes itself (CK206): dropping it "
            "changes what the model computes",
            steps,
            hint=f"--drop {key} if that is meant",
        )
    return OpenDecision(
        f"`{key}` is no key of the module (CK204)",
        steps,
        hint=f"--drop {key} if it is not needed",
        is_covered=is_covered,
    )


def _iter_shape_decisions(diff: ModuleDiff) -> Iterator[OpenDecision]:
    for change in diff.shape_mismatches:
        actual_shape, expected_shape = list(change.actual.shape), list(change.expected.shape)
        yield OpenDecision(
            f"`{change.key}` is {actual_shape} and the module has {expected_shape} (CK207): build"
            " it with other arguments, or write a plan that reshapes it"
        )


def _propose_renames(diff: ModuleDiff, explained_keys: set[str]) -> dict[str, str]:
    """Return proposed renames, missing key -> unexpected key of the same shape.

    Groups of equal size are paired in order, others by similar names.
    """
    missing = [
        change.expected
        for change in diff.changes
        if isinstance(change, Missing) and change.key not in explained_keys
    ]
    unexpected = [
        change.actual
        for change in diff.changes
        if isinstance(change, Unexpected) and change.key not in explained_keys
    ]
    pairs: dict[str, str] = {}
    for group_key in (_get_shape_and_name, _get_shape):
        used_keys = set(pairs.values())
        groups = _group_keys(
            group_key, (tensor for tensor in unexpected if tensor.key not in used_keys)
        )
        for name, keys in _group_keys(
            group_key, (tensor for tensor in missing if tensor.key not in pairs)
        ).items():
            candidates = groups.get(name, [])
            if len(keys) == len(candidates):
                pairs |= dict(zip(keys, candidates, strict=True))
            elif group_key is _get_shape:
                pairs |= _pair_similar_names(keys, candidates)
    return pairs


def _get_shape_and_name(tensor: TensorInfo) -> object:
    return tensor.shape, tensor.key.rpartition(".")[2]


def _get_shape(tensor: TensorInfo) -> object:
    return tensor.shape


def _group_keys(
    group_key: Callable[[TensorInfo], object], tensors: Iterable[TensorInfo]
) -> dict[object, list[str]]:
    groups: dict[object, list[str]] = {}
    for tensor in tensors:
        groups.setdefault(group_key(tensor), []).append(tensor.key)
    return groups


def _pair_similar_names(missing: list[str], unexpected: list[str]) -> dict[str, str]:
    """Pair the keys with the most similar names, each at most once."""
    if max(len(missing), len(unexpected)) > _MAX_PAIRED_KEYS:
        return {}
    scored_pairs = sorted(
        (
            (SequenceMatcher(None, expected_key, actual_key).ratio(), expected_key, actual_key)
            for expected_key in missing
            for actual_key in unexpected
        ),
        key=lambda scored_pair: (-scored_pair[0], scored_pair[1:]),
    )
    pairs: dict[str, str] = {}
    for _, expected_key, actual_key in scored_pairs:
        if expected_key not in pairs and actual_key not in pairs.values():
            pairs[expected_key] = actual_key
    return pairs


def _summarize_reasons(decisions: tuple[OpenDecision, ...]) -> str:
    """Join the reasons; those that differ only in layer numbers become one with a count."""
    reasons_by_pattern: dict[str, list[str]] = {}
    for decision in decisions:
        reasons_by_pattern.setdefault(_LAYER_NUMBER.sub("*", decision.reason), []).append(
            decision.reason
        )
    reason_texts = [
        f"{pattern} (x{len(group)})" if len(group) > 1 else group[0]
        for pattern, group in reasons_by_pattern.items()
    ]
    remaining = sum(len(group) for group in list(reasons_by_pattern.values())[_MAX_REASONS:])
    return "; ".join(reason_texts[:_MAX_REASONS]) + (f"; and {remaining} more" if remaining else "")


def _format_commented(decision: OpenDecision) -> str:
    steps = "".join(format_step(step) for step in decision.steps)
    lines = [
        *wrap(decision.problem, _LINE_WIDTH, break_long_words=False, break_on_hyphens=False),
        *steps.removesuffix("\n").split("\n"),
    ]
    return "\n" + "".join(f"# {line}".rstrip() + "\n" for line in lines)
