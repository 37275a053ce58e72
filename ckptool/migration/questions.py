"""ModuleDiff of the derived plan -> OpenDecisions, each with proposed steps."""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from textwrap import wrap
from typing import Final

from ckptool.compare import Loading, Missing, Unexpected
from ckptool.errors import PlanError
from ckptool.migration.ops import Drop, Inject, Rename
from ckptool.migration.plan import Op, Plan, step_text
from ckptool.migration.plan import write as plan_text
from ckptool.migration.reshaping import Concat, Split
from ckptool.model import Constancy, Held, Kind, TensorInfo

_MOST: Final = 6
"""Maximum number of reasons in one error message."""
_NUMBER: Final = re.compile(r"(?<=[.`])\d+(?=[.`])")
_WIDTH: Final = 100
_COMPARED: Final = 200
"""Maximum number of keys of one shape paired by similar names; above it names do not decide."""
_OPEN: Final = (
    "# Open: what follows is not decided yet. Take the `# ` off the steps that are right, correct\n"
    "# them or write others, and run ckptool migrate again with --plan and this file.\n"
)


@dataclass(frozen=True, slots=True)
class Question:
    """A decision that the user has to make, with proposed steps."""

    reason: str
    steps: tuple[Op, ...] = ()
    """Proposed steps, unverified."""
    named: bool = False
    """Whether the proposed steps of another decision use the same key."""


class UndecidedError(PlanError):
    """File and module do not determine a plan."""

    def __init__(self, name: str, plan: Plan, questions: tuple[Question, ...]) -> None:
        super().__init__(f"{name}: cannot decide: {_in_one_line(questions)}")
        self.plan = plan
        """The part of the plan that could be derived."""
        self.questions = questions

    @property
    def draft(self) -> str:
        """TOML text of a plan file: the derived steps, then the open decisions as comments."""
        return (
            plan_text(self.plan)
            + "\n"
            + _OPEN
            + "".join(_commented(one) for one in self.questions if not one.named)
        )


def questions(met: Loading) -> tuple[Question, ...]:
    """Return the open decisions, one for each key or group of keys; () if `diff` loads strictly."""
    told = {k for one in met.restyles for k in (*one.file_keys, *one.module_keys)}
    told |= {k for one in met.fused for k in (one.whole, *one.pieces)}
    proposed = _proposed(met, told)
    missing = [key for key in met.missing_keys if key not in told]
    left = [key for key in met.unexpected_keys if key not in told]
    guessed = set(proposed.values())
    return (
        *_other_forms(met),
        *(_unknown(met, key, proposed.get(key)) for key in missing),
        *(_left_over(met, key, proposed=key in guessed) for key in left),
        *_misshapen(met),
    )


def _other_forms(met: Loading) -> Iterator[Question]:
    """Yield decisions on reparametrizations and fused projections without a safe conversion."""
    for one in met.restyles:
        if not one.bridged:
            yield Question(
                f"`{one.parameter}` is kept by {one.have} in the file and by {one.want} in the "
                "module (CK217): ckptool diff says how to get from one to the other"
            )
    for fused in met.fused:
        pieces = ", ".join(f"`{p}`" for p in fused.pieces)
        why = "the order is a guess: look it up in the code (CK218)"
        step: Op = Concat(keys=fused.pieces, into=fused.whole, dim=fused.dim, why=why)
        if fused.split:
            sizes = fused.sizes if len(set(fused.sizes)) > 1 else ()
            step = Split(key=fused.whole, into=fused.pieces, dim=fused.dim, sizes=sizes, why=why)
        yield Question(
            f"`{fused.whole}` is {pieces} in one (CK218), in an order that the file does not tell",
            (step,),
        )


def _unknown(met: Loading, key: str, proposed: str | None) -> Question:
    held = met.module.saved.get(key)
    if held is None:
        return Question(f"`{key}` is extra state that the file lacks (CK220)")
    steps: tuple[Op, ...] = (Inject(key=key, source="file:DONOR#KEY"),)
    if proposed is not None:
        why = "a guess: a tensor of this shape that the module has no key for"
        steps = (Rename(key=proposed, to=key, why=why),)
    if held.kind is Kind.PARAMETER:
        way = f": it is `{proposed}` perhaps" if proposed else f": --inject {key}=SOURCE"
        return Question(f"`{key}` is a parameter that the file lacks (CK201){way}", steps)
    return Question(
        f"`{key}` is a buffer {_origin(held)}, and it cannot be recovered from this file "
        f"(CK202): --inject {key}=file:DONOR#KEY, or another source",
        steps,
    )


def _origin(held: Held) -> str:
    if held.statistic:
        return "that training changes"
    if held.constancy is Constancy.RANDOM:
        return "that differs each time the module is built"
    return "that is not known to be the same each time the module is built"


def _left_over(met: Loading, key: str, *, proposed: bool) -> Question:
    steps: tuple[Op, ...] = () if proposed else (Drop(key=key),)
    if met.same_value.get(key) is False and key in met.module.unsaved:
        return Question(
            f"`{key}` has another value than the module makes itself (CK206): dropping it "
            f"changes what the model computes: --drop {key} if that is meant",
            steps,
        )
    return Question(
        f"`{key}` is no key of the module (CK204): --drop {key} if it is not needed",
        steps,
        named=proposed,
    )


def _misshapen(met: Loading) -> Iterator[Question]:
    for change in met.mismatched:
        have, want = list(change.actual.shape), list(change.expected.shape)
        yield Question(
            f"`{change.key}` is {have} and the module has {want} (CK207): build it with other "
            "arguments, or write a plan that reshapes it"
        )


def _proposed(met: Loading, told: set[str]) -> dict[str, str]:
    """Return proposed renames, missing key -> unexpected key of the same shape.

    Groups of equal size are paired in order, others by similar names.
    """
    wanted = [c.expected for c in met.changes if isinstance(c, Missing) and c.key not in told]
    there = [c.actual for c in met.changes if isinstance(c, Unexpected) and c.key not in told]
    pairs: dict[str, str] = {}
    for form in (_named_form, _form):
        taken = set(pairs.values())
        groups = _grouped(form, (t for t in there if t.key not in taken))
        for name, keys in _grouped(form, (t for t in wanted if t.key not in pairs)).items():
            found = groups.get(name, [])
            if len(keys) == len(found):
                pairs |= dict(zip(keys, found, strict=True))
            elif form is _form:
                pairs |= _alike(keys, found)
    return pairs


def _named_form(tensor: TensorInfo) -> object:
    return tensor.shape, tensor.key.rpartition(".")[2]


def _form(tensor: TensorInfo) -> object:
    return tensor.shape


def _grouped(
    form: Callable[[TensorInfo], object], tensors: Iterable[TensorInfo]
) -> dict[object, list[str]]:
    groups: dict[object, list[str]] = {}
    for tensor in tensors:
        groups.setdefault(form(tensor), []).append(tensor.key)
    return groups


def _alike(wanted: list[str], there: list[str]) -> dict[str, str]:
    """Pair the keys with the most similar names, each at most once."""
    if max(len(wanted), len(there)) > _COMPARED:
        return {}
    scored = sorted(
        ((SequenceMatcher(None, w, t).ratio(), w, t) for w in wanted for t in there),
        key=lambda one: (-one[0], one[1:]),
    )
    pairs: dict[str, str] = {}
    for _, want, have in scored:
        if want not in pairs and have not in pairs.values():
            pairs[want] = have
    return pairs


def _in_one_line(found: tuple[Question, ...]) -> str:
    """Join the reasons; those that differ only in layer numbers become one with a count."""
    folded: dict[str, list[str]] = {}
    for one in found:
        folded.setdefault(_NUMBER.sub("*", one.reason), []).append(one.reason)
    shown = [
        f"{pattern} (x{len(group)})" if len(group) > 1 else group[0]
        for pattern, group in folded.items()
    ]
    left = sum(len(group) for group in list(folded.values())[_MOST:])
    return "; ".join(shown[:_MOST]) + (f"; and {left} more" if left else "")


def _commented(question: Question) -> str:
    reason = question.reason.partition(": --")[0].partition(": ckptool diff")[0]
    steps = "".join(step_text(step) for step in question.steps)
    lines = [
        *wrap(reason, _WIDTH, break_long_words=False, break_on_hyphens=False),
        *steps.splitlines(),
    ]
    return "\n" + "".join(f"# {line}".rstrip() + "\n" for line in lines)
