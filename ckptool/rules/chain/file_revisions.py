"""RevisionFacts -> hits: the place of a checkpoint in a chain of migrations (CK870-CK875)."""

from collections.abc import Iterator
from functools import partial
from typing import Final

from msgspec import Struct

from ckptool.rules.fixes.commands import format_chain_command
from ckptool.rules.registry import Level, Rule, RuleHit, check, hit

_RECORD_CHANGE: Final = 'ckptool revision -m "what changed"'


class RevisionFacts(Struct, frozen=True):
    """Place of a checkpoint in the chain of its project."""

    kind: str
    """A `RevisionStatus` of ckptool.revisions."""
    text: str
    """How the revision is known, or why it is not: "is at NAME, by its stamp"."""
    revision: str
    """Name of its revision, "" if it is not known."""
    head: str
    head_id: str = ""
    """Identifier of the head, by which newer code knows it as well."""
    candidates: tuple[str, ...] = ()
    """Names of the revisions that record what the file holds, whatever its stamp says."""
    path: str = ""
    result_path: str = ""
    """File that an upgrade or a downgrade of it writes."""
    options: tuple[str, ...] = ()
    """Words of a command about this file: the place of its state, and its module."""
    has_changed: bool = False
    """Whether the state of today's module is not the one that the head records."""

    @property
    def problem(self) -> str:
        """The kind, or "old" for a file at an earlier revision; "" for one at the head."""
        if self.kind in {"stamped", "recognised"}:
            return "" if self.revision == self.head else "old"
        return self.kind

    @property
    def command(self) -> str:
        """Command that does something about the problem."""
        if self.problem == "newer than the code":
            return self._format_move("downgrade", "--to", self.head_id)
        if self.problem == "old":
            return self._format_move("upgrade")
        if self.candidates:
            revision = self.head if self.head in self.candidates else self.candidates[-1]
            return self._format_move("upgrade", "--from", revision)
        return _RECORD_CHANGE if self.has_changed else self._format_move("migrate")

    def _format_move(self, verb: str, *words: str) -> str:
        return format_chain_command(verb, self.path, self.result_path, (*words, *self.options))


_WHY_CURRENT: Final = (
    "The project has a chain of migrations, so code and files have revisions: a release whose file "
    "is at another revision than the code does not load, or loads and computes something else."
)
_EXAMPLE: Final = """import ckptool

# ckpt_migrations/ has the revisions 0001 to 0003, and model.pth was
# {history}
ckptool.gate("model.pth")"""

_RULES: Final = {
    "old": Rule(
        code="CK870",
        name="old-revision",
        level=Level.ERROR,
        summary="the checkpoint is not at the head of the chain of migrations, {head}",
        detail="it {text}",
        why=_WHY_CURRENT,
        fix="Upgrade it: `{command}`",
        general_command="ckptool upgrade FILE -o NEW",
        example=_EXAMPLE.format(history="saved at 0001"),
    ),
    "newer than the code": Rule(
        code="CK871",
        name="newer-than-code",
        level=Level.ERROR,
        summary="the checkpoint is newer than the code",
        detail="{text}",
        why=_WHY_CURRENT,
        fix="Release it with the code that has its revision; or, with that code, write a file for "
        "this code: `{command}`",
        general_command="ckptool downgrade FILE -o NEW --to REV",
        example=_EXAMPLE.format(history="upgraded to 0004 by newer code"),
    ),
    "of another project": Rule(
        code="CK872",
        name="foreign-stamp",
        level=Level.ERROR,
        summary="the checkpoint has the stamp of another project's chain of migrations",
        detail="it {text}",
        why=(
            "A stamp is written by `ckptool upgrade` in the project that the file belongs to: this "
            "is the file of another model, or its keys were taken over with the stamp."
        ),
        fix="Release the file of this project; if this is its state, write it again with the stamp "
        "of this chain: `{command}`",
        general_command="ckptool upgrade FILE -o NEW --from REV",
        example=_EXAMPLE.format(history="stamped in another project"),
    ),
    "unknown": Rule(
        code="CK873",
        name="unknown-revision",
        level=Level.ERROR,
        summary="the checkpoint is at no revision of the chain of migrations",
        detail="it {text}",
        why=_WHY_CURRENT,
        fix="Release a file that the code saved; or bring this one into the chain: `{command}`",
        general_command=_RECORD_CHANGE,
        example=_EXAMPLE.format(history="saved by code that no revision records"),
    ),
    "contradicted": Rule(
        code="CK874",
        name="contradicted-stamp",
        level=Level.ERROR,
        summary="the keys of the checkpoint are not those of the revision in its stamp",
        detail="it {text}",
        why=(
            "Its state was changed after `ckptool upgrade` had written it, and the stamp was kept: "
            "an upgrade from that revision would fail, or do the wrong steps."
        ),
        fix="Write it again, at a revision of the chain: `{command}`",
        general_command="ckptool upgrade FILE -o NEW --from REV",
        example=_EXAMPLE.format(history="stamped with 0003 and has other keys"),
    ),
    "ambiguous": Rule(
        code="CK875",
        name="ambiguous-revision",
        level=Level.WARNING,
        summary="the checkpoint has no stamp, and may be at several revisions",
        detail="{candidates}",
        why=(
            "Revisions that change values alone have the same keys and shapes, so that a file "
            "without a stamp shows only to its author which of them it is at."
        ),
        fix="Write it with the stamp of the revision that it was saved at, with --from: "
        "`{command}`",
        general_command="ckptool upgrade FILE -o NEW --from REV",
        example=_EXAMPLE.format(history="saved at 0002 or 0003, which have equal keys"),
    ),
}
"""Problem of a file -> its rule."""


def _find_problem(problem: str, facts: RevisionFacts) -> Iterator[RuleHit]:
    if facts.problem != problem:
        return
    is_maybe_head = problem == "ambiguous" and facts.head in facts.candidates
    yield hit(
        "",
        Level.WARNING if is_maybe_head else Level.ERROR,
        head=facts.head,
        text=facts.text.removeprefix("is newer than the code: "),
        candidates=", ".join(facts.candidates),
        command=facts.command,
    )


for _problem, _rule in _RULES.items():
    check(RevisionFacts, _rule)(partial(_find_problem, _problem))
