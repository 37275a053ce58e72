"""ModuleDiff of the derived plan -> OpenDecisions: questions, each with evidence and an option."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from textwrap import wrap
from typing import Final

from msgspec import Struct

from ckptool.compare.explain_key import describe_origin
from ckptool.compare.module_diff import ModuleDiff
from ckptool.compare.quantization.summary import format_sides
from ckptool.compare.rename_search.key_subtrees import KeySubtree, find_subtrees
from ckptool.compare.rename_search.rename_groups import RenameGroup
from ckptool.compare.renames import PrefixRewrite
from ckptool.errors import PlanError
from ckptool.migration.plan.form_steps import iter_form_questions
from ckptool.migration.plan.key_operations import DropKeys, InjectTensor
from ckptool.migration.plan.plan_file import Op, Plan, format_plan, format_step
from ckptool.migration.plan.rename_steps import (
    build_rename_steps,
    format_rewrite_patterns,
    is_exact_rewrite,
)
from ckptool.model import Kind, ModuleTensor
from ckptool.phrases import pluralize, quote_shell

_MAX_SHOWN: Final = 20
"""Maximum number of questions in one error message."""
_MAX_DROPS: Final = 4
"""Maximum number of options --drop in one question."""
_LINE_WIDTH: Final = 100
_OPEN_DECISIONS_HEADER: Final = (
    "# Open: what follows is not decided yet. Take the `# ` off the steps that are right, correct\n"
    "# them or write others, and run ckptool migrate again with --plan and this file.\n"
)


class OpenDecision(Struct, frozen=True):
    """A question that file and module do not answer, with proposed steps."""

    problem: str
    steps: tuple[Op, ...] = ()
    """Proposed steps, unverified."""
    option: str = ""
    """Option of the command that answers it; "" if only a plan can."""
    renames: RenameGroup | None = None
    """The renames that it asks about."""
    needs_drop: bool = False
    """Whether keys of the file are in the place of the renamed ones, and would be lost."""
    is_about_shapes: bool = False
    """Whether it is about keys of which the module has another shape, and nothing else."""

    @property
    def is_acceptable(self) -> bool:
        """Whether --accept-renames answers it."""
        return self.renames is not None and self.renames.is_unambiguous and not self.needs_drop

    @property
    def question(self) -> str:
        return f"{self.problem}: {self.option}" if self.option else self.problem


class UndecidedError(PlanError):
    """File and module do not determine a plan."""

    def __init__(
        self,
        name: str,
        plan: Plan,
        decisions: tuple[OpenDecision, ...],
        reason: str = "",
        hint: str = "",
    ) -> None:
        count = len(decisions)
        questions = "1 open question" if count == 1 else f"{count} open questions"
        message = f"{name}: not migrated: {f'{reason}; ' if reason else ''}{questions}"
        self._lines = (message, *_format_questions(decisions), *((hint,) if hint else ()))
        super().__init__("\n  ".join(self._lines))
        self.name = name
        self.plan = plan
        """The part of the plan that could be derived."""
        self.decisions = decisions
        self.reason = reason
        """What the old module's outputs said of it; "" if they were not asked."""

    def add_hint(self, hint: str) -> "UndecidedError":
        """Return the error with a last line on where the questions are answered."""
        return UndecidedError(self.name, self.plan, self.decisions, self.reason, hint)

    @property
    def lines(self) -> tuple[str, ...]:
        return self._lines

    @property
    def draft_plan_text(self) -> str:
        """TOML text of a plan file: the derived steps, then the open decisions as comments."""
        return (
            format_plan(self.plan)
            + "\n"
            + _OPEN_DECISIONS_HEADER
            + "".join(map(_format_commented, self.decisions))
        )

    @property
    def accepts_renames(self) -> bool:
        """Whether --accept-renames answers at least one of the questions."""
        return any(decision.is_acceptable for decision in self.decisions)


def find_open_decisions(diff: ModuleDiff) -> tuple[OpenDecision, ...]:
    """Return the open decisions, grouped by subtree; () if `diff` loads strictly."""
    explained_keys = {
        key
        for keys in (
            *((*r.file_keys, *r.module_keys) for r in diff.reparametrizations),
            *((p.fused_key, *p.piece_keys) for p in diff.fused_projections),
            *(group.keys for group in diff.rename_groups),
        )
        for key in keys
    }
    keys = (*diff.state.tensors, *diff.state.non_tensors)
    rewrite_decisions: tuple[OpenDecision, ...] = ()
    if diff.rewrite is not None and not is_exact_rewrite(diff):
        rewrite_decisions = (_build_rename_decision(_build_rewrite_group(diff.rewrite), keys),)
        explained_keys |= diff.rewrite.explained_keys
        explained_keys |= {*diff.reshaped_keys, *diff.reshaped_keys.values()}
    quantization_decisions = tuple(_iter_quantization_decisions(diff))
    if quantization_decisions and diff.quantization:
        explained_keys |= diff.quantization.explained_keys
    missing = [key for key in diff.missing_keys if key not in explained_keys]
    unexpected = [key for key in diff.unexpected_keys if key not in explained_keys]
    return (
        *quantization_decisions,
        *rewrite_decisions,
        *(
            _build_rename_decision(group, keys, frozenset(diff.displaced_keys))
            for group in diff.rename_groups
        ),
        *_iter_form_decisions(diff),
        *_iter_missing_decisions(diff, missing),
        *_iter_unexpected_decisions(diff, unexpected),
        *_iter_shape_decisions(diff, explained_keys),
    )


def _iter_quantization_decisions(diff: ModuleDiff) -> Iterator[OpenDecision]:
    """Yield the question on weights that the file has quantised: no step answers it."""
    quantization = diff.quantization
    if quantization is not None and quantization.file_layers:
        file_text, module_text = format_sides(quantization)
        yield OpenDecision(
            f"the file is {file_text} and the module {module_text} (CK219): weights are neither "
            "unpacked nor quantised here, and none of their tensors is renamed or dropped; to "
            f"load this file, {quantization.file_layers[0].scheme.remedy}"
        )


def _build_rewrite_group(rewrite: PrefixRewrite) -> RenameGroup:
    old_pattern, new_pattern = format_rewrite_patterns(rewrite)
    return RenameGroup(
        old_pattern,
        new_pattern,
        rewrite.key_map,
        f"{pluralize(len(rewrite.key_map), 'key')} match then",
        is_unambiguous=True,
    )


def _build_rename_decision(
    group: RenameGroup, keys: tuple[str, ...], displaced_keys: Collection[str] = ()
) -> OpenDecision:
    """Build the question whether `group` is a rename.

    Args:
        group: the renames.
        keys: all keys of the file.
        displaced_keys: keys of the file that the renamed ones take the place of.
    """
    displaced = find_subtrees((k for k in group.pairs.values() if k in displaced_keys), keys)
    names = [name for subtree in displaced for name in _list_drop_patterns(subtree)]
    options = [
        *(f"--drop {quote_shell(name)}" for name in names[:_MAX_DROPS]),
        f"--rename {quote_shell(f'{group.old_pattern}={group.new_pattern}')}",
    ]
    return OpenDecision(
        f"is `{group.old_pattern}` in the file `{group.new_pattern}` in the module?"
        f" {group.evidence}",
        (*(DropKeys(key=name) for name in names), *build_rename_steps(group, keys)),
        " ".join(options),
        group,
        needs_drop=bool(names),
    )


def _iter_form_decisions(diff: ModuleDiff) -> Iterator[OpenDecision]:
    """Yield decisions on parameters and projections that no arithmetic brings to another form."""
    for question in iter_form_questions(diff):
        yield OpenDecision(question.problem, question.steps, question.hint)


def _iter_missing_decisions(diff: ModuleDiff, keys: list[str]) -> Iterator[OpenDecision]:
    saved_tensors = diff.module.saved_tensors
    universe = (*saved_tensors, *diff.module.non_tensors)
    keys_by_reason: dict[str, list[str]] = {}
    for key in keys:
        keys_by_reason.setdefault(_explain_missing(saved_tensors.get(key)), []).append(key)
    for reason, group in keys_by_reason.items():
        for subtree in find_subtrees(group, universe):
            module_tensor = saved_tensors.get(subtree.keys[0])
            is_dense = module_tensor is not None and module_tensor.tensor.layout == "strided"
            steps = [InjectTensor(key=key, source="file:DONOR#KEY") for key in subtree.keys]
            yield OpenDecision(
                f"{_format_subtree(subtree)}: {reason}",
                tuple(steps if is_dense else ()),
                _format_inject_option(subtree) if is_dense else "",
            )


_DENSE_ADVICE: Final = (
    "dense tensors are injected: load the file with strict=False, and save the module's"
    " state_dict()"
)


def _format_inject_option(subtree: KeySubtree) -> str:
    if len(subtree.keys) > 1:
        return "--inject KEY=file:DONOR#KEY for each of them"
    key = subtree.pattern
    return f"--inject {quote_shell(f'{key}=file:DONOR#{key}')}, or another source"


def _explain_missing(module_tensor: ModuleTensor | None) -> str:
    if module_tensor is None:
        return "extra state that is not in the file (CK220)"
    layout = module_tensor.tensor.layout
    remedy = "" if layout == "strided" else f". It is {layout}, and only {_DENSE_ADVICE}"
    if module_tensor.kind is Kind.PARAMETER:
        return f"a parameter that is not in the file (CK201){remedy}"
    origin = describe_origin(module_tensor)
    return f"a buffer that {origin}; it is not in the file (CK202){remedy}"


def _iter_unexpected_decisions(diff: ModuleDiff, keys: list[str]) -> Iterator[OpenDecision]:
    differing_keys = [
        key
        for key in keys
        if diff.equal_values.get(key) is False and key in diff.module.unsaved_tensors
    ]
    for key in differing_keys:
        yield OpenDecision(
            f"`{key}` differs from the value the module computes itself (CK206): dropping it "
            "changes what the model computes",
            (DropKeys(key=key),),
            f"--drop {quote_shell(key)} if that is intended",
        )
    remaining = [key for key in keys if key not in set(differing_keys)]
    for subtree in find_subtrees(remaining, (*diff.state.tensors, *diff.state.non_tensors)):
        names = _list_drop_patterns(subtree)
        noun = "key" if diff.state.non_tensors.keys() & {*subtree.keys} else "tensor"
        yield OpenDecision(
            f"{_format_subtree(subtree, noun)}: in the file but not in the module (CK204)",
            tuple(DropKeys(key=name) for name in names),
            f"--drop {quote_shell(subtree.pattern)} if it is not needed",
        )


def _list_drop_patterns(subtree: KeySubtree) -> tuple[str, ...]:
    """Return what to drop: one glob for a whole subtree, else the keys.

    In a glob `*` covers several segments, and `layers.*.bias` also `layers.0.norm.bias`.
    """
    prefix = subtree.pattern.removesuffix("*")
    return (subtree.pattern,) if "*" not in prefix else subtree.keys


def _iter_shape_decisions(diff: ModuleDiff, explained_keys: set[str]) -> Iterator[OpenDecision]:
    changes_by_shapes: dict[tuple[str, str], list[str]] = {}
    for change in diff.shape_mismatches:
        if change.key not in explained_keys:
            shapes = str(list(change.actual.shape)), str(list(change.expected.shape))
            changes_by_shapes.setdefault(shapes, []).append(change.key)
    for (actual_shape, expected_shape), keys in changes_by_shapes.items():
        for subtree in find_subtrees(keys, diff.module.saved_tensors):
            yield OpenDecision(
                f"{_format_subtree(subtree)} is {actual_shape} and the module has {expected_shape}"
                " (CK207): build it with other arguments, or write a plan that reshapes it"
                + _format_replacement(subtree.keys, diff.module.saved_tensors),
                is_about_shapes=True,
            )


def _format_replacement(keys: Sequence[str], saved_tensors: Mapping[str, ModuleTensor]) -> str:
    """Return the options that put new initial values in the place of the file's parameters.

    "" if one of them is not a parameter, or for too many keys.
    """
    if len(keys) > _MAX_DROPS or any(saved_tensors[k].kind is not Kind.PARAMETER for k in keys):
        return ""
    drops = (f"--drop {quote_shell(key)}" for key in keys)
    values = (f"--inject {quote_shell(f'{key}=seed:0')}" for key in keys)
    return f"; or use initial values instead of the file's: {' '.join((*drops, *values))}"


def _format_subtree(subtree: KeySubtree, noun: str = "tensor") -> str:
    count = len(subtree.keys)
    return f"`{subtree.pattern}`" + (f" ({pluralize(count, noun)})" if count > 1 else "")


def _format_questions(decisions: Iterable[OpenDecision]) -> tuple[str, ...]:
    questions = tuple(decision.question for decision in decisions)
    more = len(questions) - _MAX_SHOWN
    return questions[:_MAX_SHOWN] + ((f"and {more} more",) if more > 0 else ())


def _format_commented(decision: OpenDecision) -> str:
    steps = "".join(format_step(step) for step in decision.steps)
    lines = [
        *wrap(decision.problem, _LINE_WIDTH, break_long_words=False, break_on_hyphens=False),
        *steps.removesuffix("\n").split("\n"),
    ]
    return "\n" + "".join(f"# {line}".rstrip() + "\n" for line in lines)
