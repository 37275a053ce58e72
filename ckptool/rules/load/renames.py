"""ModuleDiff or CheckpointDiff -> hits: keys that have other names in the file (CK209, CK211)."""

from collections.abc import Iterator
from typing import Final

from ckptool.compare.checkpoint_diff import CheckpointDiff
from ckptool.compare.module_diff import ModuleDiff
from ckptool.compare.rename_search.rename_groups import RenameGroup
from ckptool.compare.renames import PrefixRewrite
from ckptool.compare.states import list_placeholders
from ckptool.phrases import join_limited, pluralize, quote_code, quote_python
from ckptool.rules.fixes.commands import (
    format_file_rename_command,
    format_migrate_command,
    format_rename_command,
)
from ckptool.rules.fixes.rewrite_code import format_rewrite_code, list_rewrite_steps
from ckptool.rules.registry import MIGRATE, Level, Rule, RuleHit, check, check_other_subject, hit

WRAPPER_PREFIX: Final = "CK209"
"""Code of the one finding for all keys that differ by a wrapper's prefix."""
PROBABLE_RENAME: Final = "CK211"
"""Code of the one finding for all keys that one change of the code renamed."""


@check(
    ModuleDiff,
    Rule(
        code=WRAPPER_PREFIX,
        name="wrapper-prefix",
        level=Level.WARNING,
        summary="{count} of the file's keys match if {what}",
        why=(
            "DistributedDataParallel, torch.compile, FSDP, activation checkpointing and "
            "Lightning add segments to keys. With strict=False such a file loads nothing, "
            "silently."
        ),
        fix="{remedy}",
        general_advice=(
            "Migrate the file: ckptool migrate FILE -o NEW -m MODULE; in code: state_dict = "
            "{k.removeprefix(PREFIX): v for k, v in state_dict.items()}"
        ),
        example=(
            "state = nn.DataParallel(model).state_dict()  # module.fc.weight\n"
            "model.load_state_dict(state)"
        ),
    ),
)
def find_wrapper_prefix(diff: ModuleDiff) -> Iterator[RuleHit]:
    rewrite = diff.rewrite
    if rewrite is None or diff.part is not None:
        return
    placeholders = {*list_placeholders(diff.state)}
    reshaped_keys = diff.reshaped_keys.keys() - placeholders
    matched_keys = rewrite.key_map.keys() - placeholders
    if placeholders and not matched_keys | reshaped_keys:
        return
    removed = [segment.rstrip(".") for segment in rewrite.removed_segments]
    steps = list_rewrite_steps(rewrite)
    if diff.average_counters:
        steps.append(f"`{diff.average_counters[0]}`, the counter of AveragedModel, is left out")
    reshaped = f", {len(reshaped_keys)} of them with other shapes" * bool(reshaped_keys)
    yield hit(
        rewrite.added_prefix or f"{'.'.join(removed)}.",
        None,
        (*rewrite.explained_keys, *diff.average_counters),
        count=len(matched_keys) + len(reshaped_keys),
        what=" and ".join(steps) + reshaped + _describe_tied_keys(rewrite),
        remedy=_format_rewrite_fix(diff, rewrite),
        removed=removed,
        added=rewrite.added_prefix,
    )


def _describe_tied_keys(rewrite: PrefixRewrite) -> str:
    """Return a clause with the keys that the file leaves out since they are tied, "" without."""
    keys = [quote_code(key) for key in rewrite.tied_keys]
    verb = "is" if len(keys) == 1 else "are"
    return f"; {join_limited(keys, 3)} {verb} tied to one of them, and not in the file" * bool(keys)


def _format_rewrite_fix(diff: ModuleDiff, rewrite: PrefixRewrite) -> str:
    """Return the command, the code, or both.

    A migration asks about other shapes, and writes nothing; code that renames does not add the
    tied keys that the file leaves out.
    """
    code = format_rewrite_code(rewrite, diff.reshaped_keys, diff.average_counters)
    fixes = (
        f"Migrate the file: {format_migrate_command(diff)}" * (not diff.reshaped_keys),
        f"in code: state_dict = {code}" * bool(diff.reshaped_keys or not rewrite.tied_keys),
    )
    return "; or ".join(filter(None, fixes))


@check(
    ModuleDiff,
    Rule(
        code=PROBABLE_RENAME,
        name="probable-rename",
        level=Level.WARNING,
        summary="`{found}` in the file {certainty} `{key}` in the module",
        detail="{how}",
        why=(
            "A refactor renamed the module. With strict=False the trained values are ignored and "
            "the parameter stays randomly initialised."
        ),
        fix="If it is the same tensor, write a file with the new names: {command}",
        general_command=MIGRATE,
        example=(
            "old.enc = nn.Linear(8, 8)\n"
            "new.encoder = nn.Linear(8, 8)\n"
            "new.load_state_dict(old.state_dict())"
        ),
    ),
)
def find_probable_renames(diff: ModuleDiff) -> Iterator[RuleHit]:
    open_keys = {*diff.vacated_keys, *diff.displaced_keys}
    for group in diff.rename_groups:
        yield hit(
            group.new_pattern,
            None,
            group.keys - open_keys,
            found=group.old_pattern,
            count=len(group.pairs),
            certainty=_describe_certainty(group),
            how=group.evidence,
            unambiguous=group.is_unambiguous,
            command=format_rename_command(diff, group),
        )


def _describe_certainty(group: RenameGroup) -> str:
    if group.is_documented:
        return "is"
    return "is probably" if group.is_unambiguous else "may be"


@check_other_subject(
    CheckpointDiff,
    PROBABLE_RENAME,
    summary="`{key}` {certainty} `{found}` in the new file",
    detail="{how}",
    fix="Keep the name, or rename it where the old file is loaded: {remedy}",
)
def find_renames_between_files(diff: CheckpointDiff) -> Iterator[RuleHit]:
    for group in diff.rename_groups:
        is_proved = diff.proved_renames.issuperset(group.pairs)
        tensors = pluralize(len(group.pairs), "tensor")
        equal = "dtype, shape and all values are the same"
        yield hit(
            group.old_pattern,
            None,
            group.keys,
            found=group.new_pattern,
            proved=is_proved,
            certainty="is" if is_proved else "is probably",
            how=f"{tensors}, {equal if is_proved else 'by shape and name'}",
            remedy=_format_file_rename_fix(diff, group),
        )


def _format_file_rename_fix(diff: CheckpointDiff, group: RenameGroup) -> str:
    """Return the code for one key, and the command that writes the old file again for several."""
    if len(group.pairs) == 1:
        ((old, new),) = group.pairs.items()
        return f"state_dict[{quote_python(new)}] = state_dict.pop({quote_python(old)})"
    return format_file_rename_command(diff, group)
