"""CheckpointDiff, ContractDiff -> hits: compatibility with an older release (CK801-CK806)."""

import shlex
from collections.abc import Iterator
from typing import Final

from ckptool.compare import Changed, Missing, Revision, Unexpected
from ckptool.contract import Fixture, Holding, Term
from ckptool.model import Constancy, Kind
from ckptool.rules.forms import diagnose_shapes
from ckptool.rules.registry import Hit, Level, Rule, also, check, hit
from ckptool.verification.facts import Replay

_UNSAVED: Final = {
    Kind.PARAMETER: "a parameter that is not registered",
    Kind.BUFFER: "a buffer that is not saved",
    Kind.NON_PERSISTENT_BUFFER: "a buffer with persistent=False",
    Kind.ATTRIBUTE: "a plain attribute",
    Kind.CONTAINER: "a tensor in a container",
    Kind.ARRAY: "a numpy array",
    Kind.MODULE: "in a module that is not registered",
    Kind.CLASS_ATTRIBUTE: "a class attribute",
}
_KEEP: Final = "Keep it saved: drop persistent=False, or register it as a buffer again."


@check(
    Revision,
    Rule(
        code="CK801",
        name="contract-key-removed",
        level=Level.ERROR,
        message="`{key}` {shape} is in the old file and not in the new one{renamed}",
        why="Code that loads the old file strictly fails on the new one: the key is missing.",
        fix="Keep the key, or release the new code together with the new file.",
        example="old = model.state_dict()\n"
        'new = {key: t for key, t in old.items() if key != "head.bias"}',
    ),
)
def key_removed(revision: Revision) -> Iterator[Hit]:
    for change in revision.changes:
        if isinstance(change, Missing):
            there = revision.renames.get(change.key, "")
            proved = change.key in revision.proved
            yield hit(
                change.key,
                shape=list(change.expected.shape),
                renamed=_renamed(there, "the values are equal" if proved else "by shape and name"),
                found=there,
                proved=proved,
            )


@also(
    Holding,
    "CK801",
    message="`{key}` {form} is in {old} and no longer in {new}{renamed}",
    fix="Keep the key, or release it as a break: code and files of before do not go with those of "
    "now.",
)
def term_removed(holding: Holding) -> Iterator[Hit]:
    for change in holding.changes:
        if isinstance(change, Missing):
            there = holding.renames.get(change.key, "")
            yield hit(
                change.key,
                **_sides(holding),
                form=holding.old.terms[change.key].form,
                renamed=_renamed(there, "by shape and name"),
                found=there,
            )
    for key in holding.removed_others:
        yield hit(key, **_sides(holding), form=f"({holding.old.others[key]})", renamed="", found="")


@check(
    Revision,
    Rule(
        code="CK802",
        name="contract-key-added-without-migration",
        level=Level.ERROR,
        message="`{key}` {shape} is in the new file and not in the old one",
        why="Code that expects the new key fails on every old file, and old code calls it "
        "unexpected.",
        fix="Give old files a migration, or make the buffer non-persistent.",
        example='old = model.state_dict()\nnew = {**old, "mask": torch.ones(9)}',
    ),
)
def key_added(revision: Revision) -> Iterator[Hit]:
    used = set(revision.renames.values())
    for change in revision.changes:
        if isinstance(change, Unexpected) and change.key not in used:
            yield hit(change.key, shape=list(change.actual.shape))


@also(
    Holding,
    "CK802",
    message="`{key}` {form} is in {new} and not in {old}{brought}",
    fix="{remedy}",
)
def term_added(holding: Holding) -> Iterator[Hit]:
    for key in holding.added:
        if key not in holding.flipped:
            term = holding.new.terms[key]
            yield hit(
                key,
                _when_brought(holding, key),
                **_sides(holding),
                form=term.form,
                brought=_brought(holding, key),
                remedy=_way_out(holding, key),
            )
    for key in holding.added_others:
        form = f"({holding.new.others[key]})"
        yield hit(key, **_sides(holding), form=form, brought="", remedy=_way_out(holding, key))


@check(
    Holding,
    Rule(
        code="CK803",
        name="persistence-flipped",
        level=Level.ERROR,
        message="`{key}` {form} was {was} in {old}, and is {is_} in {new}{brought}",
        why="A key that changes between saved and not saved makes strict loading fail in one "
        "direction or the other: old files have a key too many, or lack one. It is one word in the "
        "code (`persistent=False`), and nobody sees it in review.",
        fix="{remedy}",
        example='self.register_buffer("mask", mask, persistent=False)  # and saved before',
    ),
)
def persistence_flipped(holding: Holding) -> Iterator[Hit]:
    for key in holding.flipped:
        before, now = holding.old.terms[key], holding.new.terms[key]
        yield hit(
            key,
            Level.NOTE if key in holding.proved else None,
            **_sides(holding),
            form=now.form,
            was=_saving(before),
            is_=_saving(now),
            brought=_brought(holding, key) or _lost(now),
            saved=now.saved,
            remedy=_way_out(holding, key) if now.saved else _KEEP,
        )


@check(
    Revision,
    Rule(
        code="CK804",
        name="contract-shape-or-dtype-changed",
        level=Level.ERROR,
        message="`{key}` was {old} and is {new}{diagnosis}",
        why="A changed shape fails to load; a changed dtype is cast silently, which can lose "
        "values.",
        fix="Keep shape and dtype, or release the new code together with the new file.",
        example="old = model.state_dict()\nnew = {key: t.bfloat16() for key, t in old.items()}",
    ),
)
def form_changed(revision: Revision) -> Iterator[Hit]:
    yield from _forms(revision)


@also(Holding, "CK804")
def term_changed(holding: Holding) -> Iterator[Hit]:
    yield from _forms(holding)


@check(
    Replay,
    Rule(
        code="CK805",
        name="output-drift",
        level=Level.ERROR,
        message="{module} with `{key}` does not compute what {golden} recorded: on {device} {how} "
        "(tolerance {tolerance}; {circumstances})",
        why="Every key matches and the model is another one: the code of forward has changed, or "
        "the weights have. Users see other predictions after an update.",
        fix="Where the change is meant, record anew: `ckptool lock --golden {golden} ...`; else "
        "find it with `ckptool verify {key} --against OLD`.",
        example="y = self.body(x) * self.scale  # in forward, and without the scale before",
    ),
)
def output_drift(replay: Replay) -> Iterator[Hit]:
    for one in replay.drifts:
        yield hit(
            replay.path,
            module=replay.module,
            golden=replay.golden,
            device=one.device,
            how=one.how,
            tolerance=one.tolerance,
            circumstances="; ".join(replay.circumstances),
        )


@check(
    Fixture,
    Rule(
        code="CK806",
        name="no-migration-path",
        level=Level.ERROR,
        message="`{key}` does not load strictly into {module}, and no migration leads there: "
        "{reason}",
        why="It is a file that users have. Today's code cannot load it, and nothing that is "
        "released with the code makes it loadable.",
        fix="Run `ckptool migrate {file} -m {module} --dry-run --save-plan PLAN`, decide in PLAN "
        "what is open, and name it with --plan, or in `plans` of the configuration.",
        example="self.head = nn.Linear(4, 1)  # a parameter that no old file has",
    ),
)
def no_migration_path(fixture: Fixture) -> Iterator[Hit]:
    if not fixture.way:
        file = shlex.quote(fixture.path)
        yield hit(fixture.path, module=fixture.module, reason=fixture.reason, file=file)


def _forms(subject: Revision | Holding) -> Iterator[Hit]:
    for change in subject.changes:
        if not isinstance(change, Changed):
            continue
        old, new = change.expected, change.actual
        reshaped = "shape" in change.fields
        yield hit(
            change.key,
            None if reshaped or old.layout != new.layout else Level.WARNING,
            old=f"{old.dtype} {list(old.shape)}",
            new=f"{new.dtype} {list(new.shape)}",
            diagnosis=f": {diagnose_shapes(old.shape, new.shape)}" if reshaped else "",
        )


def _sides(holding: Holding) -> dict[str, object]:
    return {"old": holding.old.name, "new": holding.new.name}


def _renamed(there: str, proof: str) -> str:
    return f"; it is probably `{there}` now ({proof})" if there else ""


def _when_brought(holding: Holding, key: str) -> Level | None:
    """Return the level of a key that old files lack.

    NOTE if a fixture proves the migration, WARNING if the value is derivable, None (the rule's
    default) if no migration is known.
    """
    if key in holding.proved:
        return Level.NOTE
    return Level.WARNING if key in holding.brought else None


def _brought(holding: Holding, key: str) -> str:
    way = holding.brought.get(key, "")
    return f": {way}" if way else ""


def _saving(term: Term) -> str:
    if term.saved:
        registered = term.kind in {Kind.BUFFER, Kind.PARAMETER}
        return f"a saved {term.kind}" if registered else "saved"
    return _UNSAVED[term.kind] if term.kind else "not saved"


def _lost(term: Term) -> str:
    """Describe the loss if a value is not saved any more; "" if it still is."""
    if term.saved:
        return ""
    if term.constancy is Constancy.CONSTANT:
        return ": old files have a key too many"
    if term.constancy is None:
        return ": its value in old files is dropped"
    return f": its value is {term.constancy}, so a load does not bring it back"


def _way_out(holding: Holding, key: str) -> str:
    if key in holding.proved:
        return "Nothing, as long as the way there is released with the code."
    if key in holding.brought:
        return "Tell users to run `ckptool migrate`, and prove with --fixtures that it works."
    return "Give old files a migration (`ckptool migrate`), and prove it with --fixtures."
