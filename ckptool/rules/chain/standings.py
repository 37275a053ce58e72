"""RevisionStanding -> hits: the place of a checkpoint in a chain of migrations (CK870-CK875)."""

from collections.abc import Iterator
from typing import Final

from msgspec import Struct

from ckptool.rules.registry import Level, Rule, RuleHit, check, hit

_WHY_CURRENT: Final = (
    "The project has a chain of migrations, so code and files have revisions: a release whose file "
    "is at another revision than the code does not load, or loads and computes something else."
)
_EXAMPLE: Final = """import ckptool

# ckpt_migrations/ has the revisions 0001 to 0003, and model.pth was
# saved at 0001
ckptool.gate("model.pth")"""


class RevisionStanding(Struct, frozen=True):
    """Place of a checkpoint in the chain of its project."""

    kind: str
    """A `StandingKind` of ckptool.revisions."""
    text: str
    """How the revision is known, or why it is not: "is at NAME, by its stamp"."""
    revision: str
    """Name of its revision, "" if it is not known."""
    head: str
    candidates: tuple[str, ...] = ()
    """Of an ambiguous file: names of the revisions that it may be at."""
    upgrade_command: str = ""
    """Command that writes the file at the head."""


@check(
    RevisionStanding,
    Rule(
        code="CK870",
        name="old-revision",
        level=Level.ERROR,
        summary="the checkpoint is not at the head of the chain of migrations, {head}",
        detail="it {text}",
        why=_WHY_CURRENT,
        fix="Upgrade it: `{command}`",
        general_command="ckptool upgrade FILE -o NEW",
        example=_EXAMPLE,
    ),
)
def find_old_revision(standing: RevisionStanding) -> Iterator[RuleHit]:
    if standing.revision and standing.revision != standing.head and standing.kind != "contradicted":
        yield _describe_standing(standing)


@check(
    RevisionStanding,
    Rule(
        code="CK871",
        name="newer-than-code",
        level=Level.ERROR,
        summary="the checkpoint is newer than the code",
        detail="it {text}",
        why=_WHY_CURRENT,
        fix="Release it with the code that has its revision, or `ckptool downgrade` it there.",
        example=_EXAMPLE.replace("saved at 0001", "upgraded to 0004 by newer code"),
    ),
)
def find_newer_file(standing: RevisionStanding) -> Iterator[RuleHit]:
    if standing.kind == "newer than the code":
        yield _describe_standing(standing)


@check(
    RevisionStanding,
    Rule(
        code="CK872",
        name="foreign-stamp",
        level=Level.ERROR,
        summary="the checkpoint has the stamp of another project's chain of migrations",
        detail="it {text}",
        why=(
            "A stamp is written by `ckptool upgrade` in the project that the file belongs to: this "
            "is the file of another model, or its keys were taken over with the stamp."
        ),
        fix="Release the file of this project; with another state, save it again without metadata.",
        example=_EXAMPLE.replace("saved at 0001", "stamped in another project"),
    ),
)
def find_foreign_stamp(standing: RevisionStanding) -> Iterator[RuleHit]:
    if standing.kind == "of another project":
        yield _describe_standing(standing)


@check(
    RevisionStanding,
    Rule(
        code="CK873",
        name="unknown-revision",
        level=Level.ERROR,
        summary="the checkpoint is at no revision of the chain of migrations",
        detail="it {text}",
        why=_WHY_CURRENT,
        fix='If the module changed, record it: `ckptool revision -m "what changed"`; else release '
        "a file that the code saved.",
        example=_EXAMPLE.replace("saved at 0001", "saved by code that no revision records"),
    ),
)
def find_unknown_revision(standing: RevisionStanding) -> Iterator[RuleHit]:
    if standing.kind == "unknown":
        yield _describe_standing(standing)


@check(
    RevisionStanding,
    Rule(
        code="CK874",
        name="contradicted-stamp",
        level=Level.ERROR,
        summary="the keys of the checkpoint are not those of the revision in its stamp",
        detail="it {text}",
        why=(
            "Its state was changed after `ckptool upgrade` had written it, and the stamp was kept: "
            "an upgrade from that revision would fail, or do the wrong steps."
        ),
        fix="Save it again without the stamp, or name its revision: `ckptool upgrade PATH --from "
        "REV -o OUT`",
        example=_EXAMPLE.replace("saved at 0001", "stamped with 0003 and has other keys"),
    ),
)
def find_contradicted_stamp(standing: RevisionStanding) -> Iterator[RuleHit]:
    if standing.kind == "contradicted":
        yield _describe_standing(standing)


@check(
    RevisionStanding,
    Rule(
        code="CK875",
        name="ambiguous-revision",
        level=Level.WARNING,
        summary="the checkpoint has no stamp, and may be at several revisions",
        detail="{candidates}",
        why=(
            "Revisions that change values alone have the same keys and shapes, so that a file "
            "without a stamp shows only to its author which of them it is at."
        ),
        fix="Write it with the stamp of its revision: `ckptool upgrade PATH --from REV -o OUT`",
        example=_EXAMPLE.replace("saved at 0001", "saved at 0002 or 0003, which have equal keys"),
    ),
)
def find_ambiguous_revision(standing: RevisionStanding) -> Iterator[RuleHit]:
    if standing.kind == "ambiguous":
        level = None if standing.head in standing.candidates else Level.ERROR
        yield hit("", level, head=standing.head, candidates=", ".join(standing.candidates))


def _describe_standing(standing: RevisionStanding) -> RuleHit:
    return hit("", head=standing.head, text=standing.text, command=standing.upgrade_command)
