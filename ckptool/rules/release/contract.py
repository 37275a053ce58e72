"""CheckpointDiff, ContractDiff -> hits: compatibility with an older release (CK801-CK806)."""

from collections.abc import Iterable, Iterator
from typing import Final

from ckptool.compare.changes import (
    DENSE_LAYOUTS,
    Change,
    Changed,
    Missing,
    Unexpected,
    breaks_loading,
)
from ckptool.compare.checkpoint_diff import CheckpointDiff
from ckptool.compare.contracts.contract import ContractEntry, FixtureResult
from ckptool.compare.contracts.contract_diff import ContractDiff
from ckptool.model import Constancy, Kind, TensorInfo
from ckptool.phrases import quote_python
from ckptool.rules.fixes.commands import (
    format_golden_command,
    format_lock_command,
    format_plan_command,
)
from ckptool.rules.load.shapes import describe_shape_change
from ckptool.rules.registry import Level, Rule, RuleHit, check, check_other_subject, hit
from ckptool.verification.result import GoldenReplay

_UNSAVED_KIND_TEXT: Final = {
    Kind.PARAMETER: "a parameter that is not registered",
    Kind.BUFFER: "a buffer that is not saved",
    Kind.NON_PERSISTENT_BUFFER: "a buffer with persistent=False",
    Kind.ATTRIBUTE: "a plain attribute",
    Kind.CONTAINER: "a tensor in a container",
    Kind.ARRAY: "a numpy array",
    Kind.MODULE: "in a module that is not registered",
    Kind.CLASS_ATTRIBUTE: "a class attribute",
}
_KEEP_SAVED_FIX: Final = "Keep saving it: drop persistent=False, or register it as a buffer again."


@check(
    CheckpointDiff,
    Rule(
        code="CK801",
        name="contract-key-removed",
        level=Level.ERROR,
        summary="`{key}` {shape} is in the old file and not in the new one{renamed}",
        why="Code that loads the old file strictly fails on the new one: the key is missing.",
        fix="Keep the key: new[{key:py}] = old[{key:py}]; or release the new code together with "
        "the new file.",
        example=(
            "old = model.state_dict()\n"
            'new = {key: t for key, t in old.items() if key != "head.bias"}'
        ),
    ),
)
def find_removed_keys(diff: CheckpointDiff) -> Iterator[RuleHit]:
    for change in diff.plain_changes:
        if isinstance(change, Missing):
            new_key = diff.renames.get(change.key, "")
            is_proved = change.key in diff.proved_renames
            yield hit(
                change.key,
                shape=list(change.expected.shape),
                renamed=_format_rename_clause(
                    new_key, "the values are equal" if is_proved else "by shape and name"
                )
                or _format_possible_rename(diff.possible_renames.get(change.key, "")),
                found=new_key,
                proved=is_proved,
            )


@check_other_subject(
    ContractDiff,
    "CK801",
    summary="`{key}` {form} is in {old} and no longer in {new}{renamed}",
    fix=(
        "Keep the key, or release this as a breaking change: old code does not load new files, "
        "and new code does not load old ones.{remedy}"
    ),
)
def find_removed_contract_entries(diff: ContractDiff) -> Iterator[RuleHit]:
    for change in diff.changes:
        if isinstance(change, Missing):
            new_key = diff.renames.get(change.key, "")
            yield hit(
                change.key,
                **_build_name_facts(diff),
                form=diff.old.entries[change.key].type_description,
                renamed=_format_rename_clause(new_key, "by shape and name"),
                found=new_key,
                remedy=describe_acceptance(diff),
            )
    for key in diff.removed_non_tensors:
        yield hit(
            key,
            **_build_name_facts(diff),
            form=f"({diff.old.non_tensors[key]})",
            renamed="",
            found="",
            remedy=describe_acceptance(diff),
        )


@check(
    CheckpointDiff,
    Rule(
        code="CK802",
        name="contract-key-added-without-migration",
        level=Level.ERROR,
        summary="`{key}` {shape} is in the new file and not in the old one",
        why=(
            "Code that expects the new key fails on every old file, and old code reports it as "
            "unexpected."
        ),
        fix="Drop it, if the new code computes it: del new[{key:py}], with persistent=False in the "
        "code. Otherwise old files need a migration.",
        example='old = model.state_dict()\nnew = {**old, "mask": torch.ones(9)}',
    ),
)
def find_added_keys(diff: CheckpointDiff) -> Iterator[RuleHit]:
    renamed_keys = set(diff.renames.values())
    for change in diff.plain_changes:
        if isinstance(change, Unexpected) and change.key not in renamed_keys:
            yield hit(change.key, shape=list(change.actual.shape))


@check_other_subject(
    ContractDiff,
    "CK802",
    summary="`{key}` {form} is in {new} and not in {old}{brought}",
    fix="{remedy}",
)
def find_added_contract_entries(diff: ContractDiff) -> Iterator[RuleHit]:
    for key in diff.added_keys:
        if key not in diff.persistence_changed:
            entry = diff.new.entries[key]
            yield hit(
                key,
                _choose_added_level(diff, key),
                **_build_name_facts(diff),
                form=entry.type_description,
                brought=_format_migration_clause(diff, key),
                remedy=_choose_remedy(diff, key) + describe_acceptance(diff),
            )
    for key in diff.added_non_tensors:
        form = f"({diff.new.non_tensors[key]})"
        yield hit(
            key,
            **_build_name_facts(diff),
            form=form,
            brought="",
            remedy=_choose_remedy(diff, key) + describe_acceptance(diff),
        )


@check(
    ContractDiff,
    Rule(
        code="CK803",
        name="persistence-flipped",
        level=Level.ERROR,
        summary="`{key}` {form} was {was} in {old}, and is {is_} in {new}{brought}",
        why=(
            "A key that changes between saved and not saved makes strict loading fail in one "
            "direction or the other: old files have an extra key, or a missing one. It is one "
            "word in the code (`persistent=False`), and easy to miss in review."
        ),
        fix="{remedy}",
        general_advice=(
            "Keep the key as it was, or release a migration with the code: ckptool migrate "
            "FILE -o NEW -m MODULE. If the change is meant, accept it in the lock: ckptool "
            "lock -m MODULE -o LOCK"
        ),
        example='self.register_buffer("mask", mask, persistent=False)  # and saved before',
    ),
)
def find_persistence_changes(diff: ContractDiff) -> Iterator[RuleHit]:
    for key in diff.persistence_changed:
        old_entry, new_entry = diff.old.entries[key], diff.new.entries[key]
        yield hit(
            key,
            Level.NOTE if key in diff.proved_keys else None,
            **_build_name_facts(diff),
            form=new_entry.type_description,
            was=_describe_persistence(old_entry),
            is_=_describe_persistence(new_entry),
            brought=_format_migration_clause(diff, key) or _describe_lost_value(new_entry),
            saved=new_entry.saved,
            remedy=(_choose_remedy(diff, key) if new_entry.saved else _KEEP_SAVED_FIX)
            + describe_acceptance(diff),
        )


@check(
    CheckpointDiff,
    Rule(
        code="CK804",
        name="contract-shape-or-dtype-changed",
        level=Level.ERROR,
        summary="`{key}` was {old} and is {new}{diagnosis}",
        why=(
            "A changed shape fails to load; a changed dtype is cast silently, which can lose "
            "values."
        ),
        fix="{advice} the new code together with the new file.{remedy}",
        general_advice=(
            "Keep shape and dtype, or release the new code together with the new file."
        ),
        example="old = model.state_dict()\nnew = {key: t.bfloat16() for key, t in old.items()}",
    ),
)
def find_shape_or_dtype_changes(diff: CheckpointDiff) -> Iterator[RuleHit]:
    yield from _iter_shape_or_dtype_hits(diff.plain_changes)


@check_other_subject(ContractDiff, "CK804")
def find_contract_shape_or_dtype_changes(diff: ContractDiff) -> Iterator[RuleHit]:
    yield from _iter_shape_or_dtype_hits(diff.changes, describe_acceptance(diff))


@check(
    GoldenReplay,
    Rule(
        code="CK805",
        name="output-drift",
        level=Level.ERROR,
        summary="{module} with `{key}` does not compute what {golden} recorded",
        detail="on {device} {how} (tolerance {tolerance}; {circumstances})",
        why=(
            "Every key matches, but the model is different: the code of forward has changed, or "
            "the weights have. Users get different predictions after an update."
        ),
        fix=(
            "If the change is intended, record the outputs again: {command}. Otherwise find it "
            "with `ckptool verify --old`."
        ),
        general_command="ckptool lock FILE -m MODULE --golden GOLDEN --force",
        example="y = self.body(x) * self.scale  # in forward, and without the scale before",
    ),
)
def find_output_drift(replay: GoldenReplay) -> Iterator[RuleHit]:
    for drift in replay.output_drifts:
        yield hit(
            replay.path,
            module=replay.module,
            golden=replay.golden,
            device=drift.device,
            how=drift.description,
            tolerance=drift.tolerance,
            circumstances="; ".join(replay.environment_notes),
            command=format_golden_command(replay.path, replay.module, replay.golden),
        )


@check(
    FixtureResult,
    Rule(
        code="CK806",
        name="no-migration-path",
        level=Level.ERROR,
        summary="`{key}` does not load strictly into {module}, and no migration makes it load",
        detail="{reason}",
        why=(
            "Users have this file. The current code cannot load it, and nothing that is released "
            "with the code makes it loadable."
        ),
        fix=(
            "{command}; complete {plan}, and pass it with --plan, or list it in `plans` of the "
            "configuration."
        ),
        general_command="ckptool migrate FILE -m MODULE --dry-run --save-plan PLAN",
        example="self.head = nn.Linear(4, 1)  # a parameter that no old file has",
    ),
)
def find_missing_migrations(fixture: FixtureResult) -> Iterator[RuleHit]:
    if not fixture.route:
        command, plan = format_plan_command(fixture.path, fixture.module)
        facts = {"module": fixture.module, "reason": fixture.reason}
        yield hit(fixture.path, **facts, command=command, plan=plan)


def _iter_shape_or_dtype_hits(changes: Iterable[Change], acceptance: str = "") -> Iterator[RuleHit]:
    for change in changes:
        if not isinstance(change, Changed):
            continue
        old, new = change.expected, change.actual
        shape_changed = "shape" in change.fields
        yield hit(
            change.key,
            None if breaks_loading(change) else Level.WARNING,
            old=_describe_form(old),
            new=_describe_form(new),
            diagnosis=f": {describe_shape_change(old.shape, new.shape)}" if shape_changed else "",
            advice=_advise_form(change),
            remedy=acceptance,
        )


def _describe_form(tensor: TensorInfo) -> str:
    """Return "float32 [2, 3]", "float32 (sparse_coo) [2, 3]", "a NumPy array, float32 [2, 3]"."""
    layout = "" if tensor.layout in DENSE_LAYOUTS else f" ({tensor.layout})"
    array = "a NumPy array, " if tensor.is_array else ""
    return f"{array}{tensor.dtype}{layout} {list(tensor.shape)}"


def _advise_form(change: Changed) -> str:
    """Return how the new file keeps the form that the tensor had."""
    if "shape" in change.fields:
        return "Keep its shape, or release"
    key, new = quote_python(change.key), change.actual
    if "is_array" in change.fields and new.is_array:
        return f"Save a tensor: new[{key}] = torch.from_numpy(new[{key}]); or release"
    if "dtype" in change.fields:
        dtype = change.expected.dtype
        return f"Keep its dtype: new[{key}] = new[{key}].to(torch.{dtype}); or release"
    return "Keep its layout, or release" if "layout" in change.fields else "Release"


def _build_name_facts(diff: ContractDiff) -> dict[str, object]:
    return {"old": diff.old.name, "new": diff.new.name}


def _format_rename_clause(new_key: str, proof: str) -> str:
    return f"; it was probably renamed to `{new_key}` ({proof})" if new_key else ""


def _format_possible_rename(new_key: str) -> str:
    question = (
        f"; was it renamed to `{new_key}`? The values are equal, but too few or too simple to "
        "prove it"
    )
    return question if new_key else ""


def _choose_added_level(diff: ContractDiff, key: str) -> Level | None:
    """Return the level of a key that old files lack.

    NOTE if a fixture proves the migration, WARNING if the value is derivable, None (the rule's
    default) if no migration is known.
    """
    if key in diff.proved_keys:
        return Level.NOTE
    return Level.WARNING if key in diff.migrations_for_added else None


def _format_migration_clause(diff: ContractDiff, key: str) -> str:
    migration = diff.migrations_for_added.get(key, "")
    return f": {migration}" if migration else ""


def _describe_persistence(entry: ContractEntry) -> str:
    if entry.saved:
        is_registered = entry.kind in {Kind.BUFFER, Kind.PARAMETER}
        return f"a saved {entry.kind}" if is_registered else "saved"
    return _UNSAVED_KIND_TEXT[entry.kind] if entry.kind else "not saved"


def _describe_lost_value(entry: ContractEntry) -> str:
    """Describe the loss if a value is not saved any more; "" if it still is."""
    if entry.saved:
        return ""
    if entry.constancy is Constancy.CONSTANT:
        return ": old files have an extra key"
    if entry.constancy is None:
        return ": its value in old files is dropped"
    return f": its value is {entry.constancy}, so loading does not restore it"


def describe_acceptance(diff: ContractDiff) -> str:
    """Return how to accept the change in the lock; "" if the old contract is not of one."""
    if not diff.old.name.endswith(".json"):
        return ""
    command = format_lock_command(diff.old.name, diff.new)
    return f" If the change is meant, accept it in the lock: {command}"


def _choose_remedy(diff: ContractDiff, key: str) -> str:
    if key in diff.proved_keys:
        return "Nothing, as long as the migration is released with the code."
    if key in diff.migrations_for_added:
        return "Tell users to run `ckptool migrate`, and check with --fixtures that it works."
    return "Provide a migration for old files (`ckptool migrate`), and check it with --fixtures."
