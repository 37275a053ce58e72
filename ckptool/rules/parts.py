"""ModuleDiff -> hits: one side of the load is one part of the other (CK224, CK225)."""

from collections.abc import Iterator
from typing import Final

from ckptool.compare.module_diff import ModuleDiff
from ckptool.compare.parts import PartMatch, PartSide
from ckptool.model import join_key
from ckptool.phrases import join_limited, quote_code, quote_python
from ckptool.rules.fixes.commands import format_migrate_command
from ckptool.rules.load.renames import WRAPPER_PREFIX
from ckptool.rules.partial_weights import PARTITIONED_PARAMETERS
from ckptool.rules.quantization import QUANTIZATION_MISMATCH
from ckptool.rules.registry import Level, Rule, RuleHit, check, hit

WHOLE_LOAD_FINDINGS: Final = frozenset({WRAPPER_PREFIX, "CK224", "CK225"})
"""Codes of the one finding that explains nearly all keys of a load."""
LOAD_CAUSES: Final = WHOLE_LOAD_FINDINGS | {
    "CK212",
    QUANTIZATION_MISMATCH,
    PARTITIONED_PARAMETERS,
}
"""Codes of the findings that say why a load as a whole fails."""
_MAX_PREFIXES: Final = 4
"""Maximum names of places that fit equally in one sentence."""


@check(
    ModuleDiff,
    Rule(
        code="CK224",
        name="state-of-a-submodule",
        level=Level.ERROR,
        summary="the file is the state of {what}",
        detail="{matched} match, and {others} of the module {verb} not in it",
        why=(
            "Strict loading into the whole module raises. With strict=False nothing loads, "
            "because no key begins with the path of the submodule; all parameters stay randomly "
            "initialised."
        ),
        fix="{remedy}: {command}; in code: {code}",
        general_advice=(
            "Load it into the submodule: "
            "model.get_submodule(PATH).load_state_dict(state_dict); or write a file for the "
            "whole module: ckptool migrate FILE -o NEW -m MODULE"
        ),
        general_summary=(
            "the file is the state_dict of one submodule, and the other keys of the module are "
            "not in it"
        ),
        example=(
            "class Cascade(nn.Module):\n"
            "    def __init__(self):\n"
            "        super().__init__()\n"
            "        self.pnet, self.rnet = nn.Linear(2, 2), nn.Linear(3, 3)\n"
            "\n"
            "\n"
            "Cascade().load_state_dict(nn.Linear(2, 2).state_dict())"
        ),
    ),
)
def find_state_of_submodule(diff: ModuleDiff) -> Iterator[RuleHit]:
    part = diff.part
    if part is None or part.side is not PartSide.FILE:
        return
    name = part.prefix if part.is_unique else "NAME"
    siblings = f"{part.sibling_count} submodules"
    parent = part.prefix.rpartition(".")[0]
    place = f"{siblings} of `{parent}`" if parent else siblings
    yield _build_hit(
        diff,
        part,
        what=f"`{part.prefix}`, one of {place}",
        remedy=f"To use it for `{part.prefix}` only",
        verb="is" if len(part.other_keys) == 1 else "are",
        command=format_migrate_command(diff, into=name),
        code=f'module.get_submodule("{name}").load_state_dict({_format_part_state(part)})',
    )


@check(
    ModuleDiff,
    Rule(
        code="CK225",
        name="part-of-the-file",
        level=Level.WARNING,
        summary="the module is {what}",
        detail="{matched} match, and {others} of the file {verb} to other modules",
        why=(
            "Strict loading raises. With strict=False nothing loads, silently, because every key "
            "of the file begins with the name of its part."
        ),
        fix="{remedy}: {command}; in code: {code}",
        general_advice=(
            "Take the part out: ckptool migrate FILE -o NEW -m MODULE --at PART; in code: "
            "{k.removeprefix(PREFIX): v for k, v in state_dict.items() if k.startswith(PREFIX)}"
        ),
        general_summary=(
            "the module is one part of the file, and the other keys belong to other modules"
        ),
        example=(
            'whole = nn.ModuleDict({"encoder": nn.Linear(2, 2), "decoder": nn.Linear(3, 3)})\n'
            "nn.Linear(2, 2).load_state_dict(whole.state_dict())"
        ),
        gate=Level.ERROR,
    ),
)
def find_part_of_file(diff: ModuleDiff) -> Iterator[RuleHit]:
    part = diff.part
    if part is None or part.side is not PartSide.MODULE:
        return
    name = part.prefix if part.is_unique else "NAME"
    places = f"{part.sibling_count} parts"
    yield _build_hit(
        diff,
        part,
        what=f"`{part.prefix}` of the file, one of {places}",
        remedy="Extract that part",
        verb="belongs" if len(part.other_keys) == 1 else "belong",
        command=format_migrate_command(diff, at=join_key(diff.state.at, name)),
        code=(
            f'{{k.removeprefix("{name}."): v for k, v in state_dict.items()'
            f' if k.startswith("{name}.")}}'
        ),
    )


def _format_part_state(part: PartMatch) -> str:
    """Return code that takes what stands before the sub-module's own keys off the file's keys."""
    own_keys = {old: new.removeprefix(f"{part.prefix}.") for old, new in part.key_map.items()}
    leading = {old.removesuffix(own_key) for old, own_key in own_keys.items()}
    if len(leading) != 1 or leading == {""}:
        return "state_dict"
    return f"{{k.removeprefix({quote_python(leading.pop())}): v for k, v in state_dict.items()}}"


def _build_hit(diff: ModuleDiff, part: PartMatch, **facts: str) -> RuleHit:
    """Return the hit; where several places fit equally, it names them and asks."""
    is_file = part.side is PartSide.FILE
    total = len(diff.state.tensors if is_file else diff.module.saved_tensors)
    if not part.is_unique:
        names = join_limited(part.prefixes, _MAX_PREFIXES, quote_code)
        whose = "submodule" if is_file else "part of the file"
        facts |= {"what": f"one {whose}, and {names} fit equally", "remedy": "Say which one"}
    return hit(
        part.prefix,
        None,
        part.explained_keys,
        matched=_format_share(len(part.key_map), total),
        others=f"{len(part.other_keys):,} other {'key' if len(part.other_keys) == 1 else 'keys'}",
        prefixes=list(part.prefixes),
        **facts,
    )


def _format_share(count: int, total: int) -> str:
    return f"all {total:,} of its keys" if count == total else f"{count:,} of its {total:,} keys"
