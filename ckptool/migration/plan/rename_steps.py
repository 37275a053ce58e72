"""RenameGroup, PrefixRewrite -> steps of a plan, and whether they are proved."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Final

from ckptool.compare.module_diff import ModuleDiff
from ckptool.compare.rename_search.key_patterns import (
    PatternError,
    is_exact_pattern,
    is_pattern,
    rename_by_pattern,
)
from ckptool.compare.rename_search.rename_groups import RenameGroup
from ckptool.compare.renames import WRAPPERS, PrefixRewrite
from ckptool.errors import PlanError
from ckptool.migration.plan.draft import Draft
from ckptool.migration.plan.key_operations import (
    AddPrefix,
    DropKeys,
    RenameKeys,
    RenameMode,
    StripPrefix,
)
from ckptool.migration.plan.operation import EMPTY_CONTEXT, Operation
from ckptool.migration.plan.plan_file import Op, Plan, apply_plan, reverse_plan
from ckptool.migration.plan.tensor_operations import TransposeTensor
from ckptool.model import Kind, tied_keys

_ASKED_FOR: Final = "asked for"
_LIGHTNING_ENTRY: Final = "pytorch-lightning_version"


def build_rename_steps(
    group: RenameGroup, keys: Iterable[str], why: str = "", assumption: str = ""
) -> Iterator[Op]:
    """Yield the operations that rename the keys of `group` at once, and transpose what needs it.

    Args:
        group: the renames.
        keys: all keys of the state_dict. The step has the group's patterns if these rename the
            group's keys only; else a table of the keys.
        why: comment of the steps; "" for the evidence.
        assumption: what they rest on without proof; "" if they are proved.
    """
    why = why or group.evidence
    old, new, pairs = group.old_pattern, group.new_pattern, group.pairs
    for key in group.transposed_keys:
        yield TransposeTensor(key=key, why=why, assumption=assumption)
    if len(pairs) == 1:
        old, new = next(iter(pairs.items()))
        yield RenameKeys(key=old, to=new, why=why, assumption=assumption)
    elif is_exact_pattern(keys, old, new, pairs):
        yield RenameKeys(key=old, to=new, how="glob", why=why, assumption=assumption)
    else:
        yield RenameKeys(keys=pairs, why=why, assumption=assumption)


def build_chosen_renames(
    renames: Mapping[str, str], groups: Iterable[RenameGroup], keys: Collection[str]
) -> tuple[tuple[Op, ...], Mapping[str, str]]:
    """Return the steps of --rename whose keys the draft has, and the renames that are left.

    Patterns of a group are the group, with its transpositions. The others are applied at once.

    Raises:
        PlanError: the wildcards of two patterns do not fit, or one key has two new names.
    """
    groups_by_patterns = {(group.old_pattern, group.new_pattern): group for group in groups}
    steps: list[Op] = []
    pairs_by_rename: dict[tuple[str, str], dict[str, str]] = {}
    for old, new in renames.items():
        group = groups_by_patterns.get((old, new))
        if group is not None:
            assumption = f"`{old}` was renamed to `{new}`, according to --rename: {group.evidence}"
            steps += build_rename_steps(group, keys, _ASKED_FOR, assumption)
        elif pairs := _match_rename(old, new, keys):
            pairs_by_rename[old, new] = pairs
    if len(pairs_by_rename) == 1:
        ((old, new),) = pairs_by_rename
        mode: RenameMode = "glob" if is_pattern(old) else "exact"
        assumption = f"`{old}` was renamed to `{new}`, according to --rename"
        steps.append(RenameKeys(key=old, to=new, how=mode, why=_ASKED_FOR, assumption=assumption))
    elif pairs_by_rename:
        steps.append(
            RenameKeys(
                keys=_merge_pairs(pairs_by_rename),
                why=_ASKED_FOR,
                assumption="according to --rename",
            )
        )
    done = {*pairs_by_rename, *(pair for pair in renames.items() if pair in groups_by_patterns)}
    return tuple(steps), {old: new for old, new in renames.items() if (old, new) not in done}


def _match_rename(old: str, new: str, keys: Collection[str]) -> dict[str, str]:
    if old in keys or not is_pattern(old):
        return {old: new} if old in keys else {}
    try:
        new_keys = {key: rename_by_pattern(key, old, new) for key in keys}
    except PatternError as error:
        raise PlanError(f"--rename {error}") from error
    return {key: new_key for key, new_key in new_keys.items() if new_key}


def _merge_pairs(pairs_by_rename: Mapping[tuple[str, str], Mapping[str, str]]) -> dict[str, str]:
    merged: dict[str, str] = {}
    for pairs in pairs_by_rename.values():
        for old, new in pairs.items():
            if merged.setdefault(old, new) != new:
                raise PlanError(f"--rename: `{old}` cannot be both `{merged[old]}` and `{new}`")
    return merged


def is_exact_rewrite(diff: ModuleDiff, given_keys: Collection[str] = ()) -> bool:
    """Whether nothing but the prefix of `diff.rewrite` can be meant.

    It takes known wrappers off only; or after it the module lacks no parameter, and no other key of
    the file could be one of the keys that it gives.

    Args:
        diff: of the draft.
        given_keys: keys of the module whose values the user gives (--inject).
    """
    rewrite = diff.rewrite
    if rewrite is None:
        return False
    wrappers = {*WRAPPERS, "model."} if _is_lightning(diff) else {*WRAPPERS}
    if not rewrite.added_prefix and {*rewrite.removed_segments} <= wrappers:
        return True
    filled_keys = {*rewrite.key_map.values(), *given_keys}
    saved_tensors = diff.module.saved_tensors
    for group in tied_keys(module_tensor.tensor for module_tensor in saved_tensors.values()):
        if not filled_keys.isdisjoint(group):
            filled_keys |= {*group}
    missing_parameters = (
        key
        for key in diff.missing_keys
        if (tensor := saved_tensors.get(key)) and tensor.kind is Kind.PARAMETER
    )
    return filled_keys.issuperset(missing_parameters) and not _has_other_candidates(diff, rewrite)


def _is_lightning(diff: ModuleDiff) -> bool:
    return any(entry.at == _LIGHTNING_ENTRY for entry in diff.checkpoint.entries)


def _has_other_candidates(diff: ModuleDiff, rewrite: PrefixRewrite) -> bool:
    """Whether a key that is left over ends in a key that the rewrite gives, with its shape."""
    expected = diff.module.saved_tensors
    filled_keys = set(rewrite.key_map.values())
    for key in diff.unexpected_keys:
        tensor = diff.state.tensors.get(key)
        if tensor is None or key in rewrite.key_map:
            continue
        segments = key.split(".")
        endings = (".".join(segments[n:]) for n in range(len(segments)))
        if any(
            ending in filled_keys and expected[ending].tensor.shape == tensor.shape
            for ending in endings
        ):
            return True
    return False


def format_rewrite_patterns(rewrite: PrefixRewrite) -> tuple[str, str]:
    """Return the rewrite as two patterns: ("encoder.*", "*") or ("*", "encoder.*")."""
    old_key, new_key = next(iter(rewrite.key_map.items()))
    if new_key.endswith(old_key):
        return "*", f"{new_key.removesuffix(old_key)}*"
    if old_key.endswith(new_key):
        return f"{old_key.removesuffix(new_key)}*", "*"
    return old_key, new_key


def iter_prefix_steps(
    diff: ModuleDiff, draft: Draft, given_keys: Collection[str] = ()
) -> Iterator[Op]:
    """Yield prefix operations, or single renames where those would give other keys."""
    if diff.rewrite is None or not is_exact_rewrite(diff, given_keys):
        return
    new_keys = {**diff.rewrite.key_map, **diff.reshaped_keys}
    ops = list(_iter_prefix_operations(diff.rewrite, new_keys, leading_once=True))
    if not (_gives_keys(ops, draft, new_keys) and _has_exact_reverse(ops, draft)):
        ops = list(_iter_prefix_operations(diff.rewrite, new_keys, leading_once=False))
    if _gives_keys(ops, draft, new_keys):
        yield from ops
    else:
        why = "the module's keys do not have it"
        yield from (RenameKeys(key=old, to=new, why=why) for old, new in new_keys.items())
    why = "it is AveragedModel's counter, which is not part of the model"
    yield from (DropKeys(key=key, why=why) for key in diff.average_counters)


def _iter_prefix_operations(
    rewrite: PrefixRewrite, new_keys: Mapping[str, str], *, leading_once: bool
) -> Iterator[Op]:
    """Yield the operations of a rewrite; with `leading_once`, each prefix is removed once a key.

    A wrapper's segment is removed wherever it stands otherwise, which has no reverse.
    """
    why = f"then {len(new_keys)} of the file's keys match the module's"
    first_key = next(iter(new_keys))
    for removed in sorted(rewrite.removed_segments, key=first_key.find):
        is_leading = removed.endswith(".")
        prefix = removed if is_leading else f"{removed}."
        if leading_once:
            yield StripPrefix(prefix=prefix, times=1, why=why)
        else:
            yield StripPrefix(prefix=prefix, anywhere=not is_leading, why=why)
    if rewrite.added_prefix:
        yield AddPrefix(prefix=rewrite.added_prefix, why=why)


def _has_exact_reverse(ops: list[Op], draft: Draft) -> bool:
    """Return whether the inverses of `ops` give every key of the draft back."""
    try:
        result = apply_plan(ops, draft, EMPTY_CONTEXT)
        restored = apply_plan(reverse_plan(Plan(tuple(ops))).ops, result, EMPTY_CONTEXT)
    except PlanError:
        return False
    return (restored.items.keys(), restored.non_tensor_keys) == (
        draft.items.keys(),
        draft.non_tensor_keys,
    )


def _gives_keys(ops: list[Op], draft: Draft, new_keys: Mapping[str, str]) -> bool:
    """Return whether `ops` rename the keys as in `new_keys` (old -> new)."""
    operations: list[Operation] = list(ops)
    source_keys = {key: item.source_key for key, item in draft.items.items()}
    try:
        for op in operations:
            draft = op.apply(draft, EMPTY_CONTEXT)
    except PlanError:
        return False
    result_keys = {item.source_key: key for key, item in draft.items.items()}
    return all(result_keys[source_keys[old]] == new for old, new in new_keys.items())
