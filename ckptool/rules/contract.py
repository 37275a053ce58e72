"""Revision -> hits: what a newer checkpoint breaks for who loads the older (CK801 to CK804)."""

from collections.abc import Iterator

from ckptool.compare import Missing, Revision, Unexpected
from ckptool.rules.forms import diagnose_shapes
from ckptool.rules.registry import Hit, Level, Rule, check, hit


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
            proof = "the values are equal" if change.key in revision.proved else "by shape and name"
            renamed = f"; it is probably `{there}` now ({proof})" if there else ""
            yield hit(
                change.key,
                shape=list(change.expected.shape),
                renamed=renamed,
                found=there,
                proved=change.key in revision.proved,
            )


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
    for change in revision.changes:
        if isinstance(change, Missing | Unexpected):
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
