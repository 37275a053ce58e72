"""Folder of revisions -> Chain: their order, its heads, and the way between two of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from msgspec import Struct

from ckptool.errors import RevisionError, describe_os_error
from ckptool.phrases import MAX_NAMED, join_limited
from ckptool.revisions.revision import Revision, read_revision

FOLDER_NAME: Final = "ckpt_migrations"
MAX_REVISIONS: Final = 2000
_MIN_PREFIX: Final = 4
"""Characters of an identifier that may stand for it."""


class Chain(Struct, frozen=True):
    """The revisions of a project, parents first."""

    folder: Path
    revisions: tuple[Revision, ...]
    heads: tuple[Revision, ...]
    """Those that no other follows."""

    @property
    def head(self) -> Revision:
        """The last revision.

        Raises:
            RevisionError: there are several heads.
        """
        self.require_one_head()
        return self.heads[0]

    def require_one_head(self) -> None:
        """Check that the chain is linear.

        Raises:
            RevisionError: it has several heads.
        """
        if len(self.heads) > 1:
            raise RevisionError(describe_heads(self))

    @property
    def project(self) -> str:
        return self.revisions[0].project

    def get_revision(self, identifier: str) -> Revision | None:
        """Return the revision of an identifier, or None."""
        return next((r for r in self.revisions if r.revision == identifier), None)

    def find_revision(self, name: str) -> Revision:
        """Return the revision that a user names.

        Args:
            name: "head", "base" (the first one), an identifier or the start of one, the name of a
                file, or its number.

        Raises:
            RevisionError: there is none, or several.
        """
        if name in {"head", "base"}:
            return self.head if name == "head" else self.revisions[0]
        stem = name.removesuffix(".toml")
        exact = [r for r in self.revisions if stem in {r.revision, r.name}]
        numbered = [r for r in self.revisions if _is_same_number(r.name.partition("_")[0], stem)]
        prefixed = [
            r for r in self.revisions if len(stem) >= _MIN_PREFIX and r.revision.startswith(stem)
        ]
        matches = exact or numbered or prefixed
        if len(matches) == 1:
            return matches[0]
        names = join_limited(matches or self.revisions, MAX_NAMED, lambda r: r.name)
        problem = "may be" if matches else "is not a revision; there are"
        raise RevisionError(f"{self.folder}: {name!r:.80} {problem} {names}")

    def list_between(self, start: Revision, end: Revision) -> tuple[Revision, ...]:
        """Return the revisions after `start` up to `end`; () if `end` is not after `start`.

        Raises:
            RevisionError: there are several heads.
        """
        self.require_one_head()
        first, last = (self.revisions.index(r) for r in (start, end))
        return self.revisions[first + 1 : last + 1]


def _is_same_number(first: str, second: str) -> bool:
    """Whether two texts are the same number, with or without leading zeros."""
    numbers = [text.lstrip("0") or "0" for text in (first, second) if text.isdecimal()]
    return len(numbers) == 2 and numbers[0] == numbers[1]


def read_chain(folder: Path) -> Chain:
    """Read the revisions in a folder; several heads are allowed.

    Raises:
        RevisionError: a file is not a revision, or they do not form a chain.
    """
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix == ".toml")
    except OSError as error:
        raise RevisionError(f"{folder}: {describe_os_error(error)}") from error
    if not paths:
        raise RevisionError(f'{folder}: has no revision: ckptool revision -m "the first one"')
    if len(paths) > MAX_REVISIONS:
        raise RevisionError(f"{folder}: has more than {MAX_REVISIONS} revisions")
    return order_revisions(folder, [read_revision(path) for path in paths])


def order_revisions(folder: Path, revisions: Sequence[Revision]) -> Chain:
    """Return the chain of revisions in any order.

    Raises:
        RevisionError: two share an identifier, a parent is missing, they follow each other, there
            are several first ones, or they are of several projects.
    """
    by_identifier = _index_revisions(folder, revisions)
    children: dict[str, list[Revision]] = {}
    for revision in revisions:
        if revision.parent and revision.parent not in by_identifier:
            raise RevisionError(
                f"{folder}: {revision.name} follows revision {revision.parent}, which is missing: "
                "restore its file, or correct `parent`"
            )
        children.setdefault(revision.parent, []).append(revision)
    first = children.get("", [])
    if len(first) > 1:
        names = join_limited(first, MAX_NAMED, lambda r: r.name)
        raise RevisionError(f"{folder}: {names} have no parent: only the first revision has none")
    ordered, pending = list[Revision](), list(first)
    while pending:
        ordered.append(pending.pop(0))
        pending += children.get(ordered[-1].revision, [])
    if len(ordered) < len(revisions):
        cycle = _find_cycle(by_identifier, next(r for r in revisions if r not in ordered))
        names = join_limited(cycle, MAX_NAMED, lambda r: r.name)
        verb = "follow each other" if len(cycle) > 1 else "follows itself"
        raise RevisionError(f"{folder}: {names} {verb}: correct `parent`")
    projects = sorted({revision.project for revision in revisions})
    if len(projects) > 1:
        raise RevisionError(f"{folder}: has revisions of several projects: {', '.join(projects)}")
    heads = tuple(r for r in ordered if r.revision not in children)
    return Chain(folder, tuple(ordered), heads)


def _find_cycle(by_identifier: Mapping[str, Revision], revision: Revision) -> list[Revision]:
    """Return the revisions of the cycle that the parents of `revision` lead into, in order."""
    path: list[Revision] = []
    while revision not in path:
        path.append(revision)
        revision = by_identifier[revision.parent]
    return path[path.index(revision) :][::-1]


def _index_revisions(folder: Path, revisions: Sequence[Revision]) -> Mapping[str, Revision]:
    by_identifier: dict[str, Revision] = {}
    for revision in revisions:
        other = by_identifier.setdefault(revision.revision, revision)
        if other is not revision:
            raise RevisionError(
                f"{folder}: {other.name} and {revision.name} are both revision {revision.revision}"
            )
    return by_identifier


def describe_heads(chain: Chain) -> str:
    """Return the line that several heads are answered with."""
    names = join_limited(chain.heads, MAX_NAMED, lambda r: r.name)
    return (
        f"{chain.folder}: has {len(chain.heads)} heads, {names}: "
        "ckptool revision --merge puts one after the other"
    )
