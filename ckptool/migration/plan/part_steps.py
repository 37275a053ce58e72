"""Draft x module -> first steps of a plan where only a part of file or module is meant."""

from collections.abc import Iterator
from typing import Final

from msgspec.structs import replace

from ckptool.compare.module_comparison import build_module_diff
from ckptool.compare.module_diff import ModuleDiff
from ckptool.compare.parts import PartMatch, PartSide
from ckptool.compare.states import find_part_at, split_part
from ckptool.migration.plan.draft import Draft
from ckptool.migration.plan.key_operations import AddPrefix, ExtractState, StripPrefix
from ckptool.migration.plan.open_decisions import OpenDecision, UndecidedError
from ckptool.migration.plan.operation import EMPTY_CONTEXT
from ckptool.migration.plan.plan_file import Op, Plan, apply_plan
from ckptool.model import ModuleInfo, join_key
from ckptool.modules.submodule import select_submodule
from ckptool.phrases import join_limited, quote_code

_MAX_NAMES: Final = 4


def find_part_steps(draft: Draft, module_info: ModuleInfo | None, at: str | None) -> tuple[Op, ...]:
    """Return the steps by which the keys get the names of the part that is meant.

    Args:
        draft: the state before the plan.
        module_info: the module, or the sub-module of it that --into names.
        at: --at; a place of which the draft's state has only keys that begin so is a part of it.
    """
    steps: list[Op] = []
    if at not in (None, "", ".", draft.state.at):
        _, prefix = split_part(draft.checkpoint, at or "")
        steps.append(ExtractState(prefix=prefix, why=f"--at {at}: only this part is wanted"))
    if module_info is not None and module_info.submodule:
        part_draft = apply_plan(steps, draft, EMPTY_CONTEXT)
        steps += _iter_into_steps(part_draft, module_info, Plan(tuple(steps)))
    return tuple(steps)


def _iter_into_steps(draft: Draft, module_info: ModuleInfo, plan: Plan) -> Iterator[Op]:
    """Yield the steps that put the sub-module's path in front of the keys, unless it is there."""
    path = module_info.submodule
    checkpoint = replace(draft.checkpoint, states=(draft.result_state,))
    place = find_part_at(checkpoint, select_submodule(module_info, path), path)
    if place is not None:
        _, prefix = split_part(checkpoint, place)
        if not all(key.startswith(prefix) for key in draft.items):
            yield ExtractState(prefix=prefix, why=f"--into {path}: only this submodule is wanted")
            yield AddPrefix(prefix=f"{path}.", why="the path of the submodule in the module")
        return
    diff = build_module_diff(checkpoint, select_submodule(module_info, path), draft.state.at)
    ask_which_part(diff, plan)
    for segment in diff.rewrite.removed_segments if diff.rewrite else ():
        is_leading = segment.endswith(".")
        yield StripPrefix(
            prefix=segment if is_leading else f"{segment}.",
            anywhere=not is_leading,
            why="the submodule's keys do not have it",
        )
    yield AddPrefix(prefix=f"{path}.", why="the path of the submodule in the module")


def ask_which_part(diff: ModuleDiff, plan: Plan) -> None:
    """Ask for --into or --at where one side is a part of the other.

    Raises:
        UndecidedError: it is; it has `plan` and this one decision.
    """
    if diff.part is not None:
        name = str(diff.checkpoint.path)
        raise UndecidedError(name, plan, (_build_part_decision(diff, diff.part),))


def _build_part_decision(diff: ModuleDiff, part: PartMatch) -> OpenDecision:
    is_file = part.side is PartSide.FILE
    option = "--into" if is_file else "--at"
    if not part.is_unique:
        names = join_limited(part.prefixes, _MAX_NAMES, quote_code)
        problem = (
            f"the file is the state of one submodule, and {names} fit equally (CK224)"
            if is_file
            else f"the module is one part of the file, and {names} fit equally (CK225)"
        )
        return OpenDecision(problem, option=f"say which one with {option} NAME")
    prefix = f"{part.prefix}."
    others = f"{len(part.other_keys):,} other keys"
    if is_file:
        return OpenDecision(
            f"the file is the state of `{part.prefix}`, one of {part.sibling_count} submodules, "
            f"and has none of the {others} of the module (CK224)",
            (AddPrefix(prefix=prefix),),
            option=f"--into {part.prefix} if only that is intended; otherwise --inject KEY=SOURCE "
            f"for the others, from `{part.other_keys[0]}` on",
        )
    return OpenDecision(
        f"the module is `{part.prefix}` of the file, one of {part.sibling_count} parts (CK225)",
        (ExtractState(prefix=prefix),),
        option=f"--at {join_key(diff.state.at, part.prefix)} takes it and drops the {others}",
    )
