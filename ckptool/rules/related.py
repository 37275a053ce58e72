"""ModuleDiff -> hits: tensors in another form, tie or file (CK217, CK218, CK501, CK605)."""

import json
import shlex
from collections.abc import Iterator
from typing import Final

from ckptool.compare import Loading
from ckptool.fused import Fused
from ckptool.model import Constancy, Kind, ties
from ckptool.rules.registry import Hit, Level, Rule, check, hit
from ckptool.styles import Restyle, Style


def migrate_command(loading: Loading) -> str:
    """Return the `ckptool migrate` command that writes a loadable file."""
    path = shlex.quote(str(loading.checkpoint.path))
    return f"ckptool migrate {path} -o NEW -m {loading.module.target}"


@check(
    Loading,
    Rule(
        code="CK217",
        name="reparam-style-mismatch",
        level=Level.WARNING,
        message="`{key}` is kept by {have} in the file and by {want} in the module{bridge}",
        why="Normalised and pruned layers save other tensors than the weight that they compute "
        "with, and torch has two sets of names for them. With strict=False the layer stays at "
        "random.",
        fix="Bring both to one form. {remedy}",
        example="old = nn.utils.spectral_norm(nn.Linear(3, 3))\n"
        "new = nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3))\n"
        "new.load_state_dict(old.state_dict())",
    ),
)
def reparam_style(loading: Loading) -> Iterator[Hit]:
    for one in loading.restyles:
        yield hit(
            one.parameter,
            Level.NOTE if one.bridged else None,
            have=_words(one.have),
            want=_words(one.want),
            bridge=": torch's own hook renames it while it loads" if one.bridged else "",
            remedy=_remedy(one, migrate_command(loading)),
            keys=[*one.file_keys, *one.module_keys],
            renames=dict(one.renames),
        )


def _words(style: Style) -> str:
    return style.value if style is not Style.PLAIN else "itself, as a plain parameter,"


def _remedy(one: Restyle, command: str) -> str:
    if one.bridged:
        return f"Nothing to load it; for loaders that compare names themselves: {command}"
    if one.renames:
        return f"Only the names differ: {command}"
    name = one.parameter
    if one.have is Style.PRUNED and one.want is Style.PLAIN:
        return f"The mask can be multiplied in for good: {command}"
    if one.have is Style.PLAIN:
        return (
            f"Load the plain file into the module before it is wrapped ({one.want}), and save "
            "its state_dict then"
        )
    codes = {
        Style.OLD_WEIGHT_NORM: "weight = torch._weight_norm({v}, {g}, 0)",
        Style.NEW_WEIGHT_NORM: "weight = torch._weight_norm({v}, {g}, 0)",
    }
    code = codes.get(one.have)
    if code is not None and one.want is Style.PLAIN:
        g, v = (f'state_dict["{key}"]' for key in one.file_keys)
        return f"Compute what the layer computed (dim=0): {code.format(g=g, v=v)}"
    return (
        f"Wrap `{name}` in the module as it was when the file was saved ({one.have}), load, and "
        "take that off or change it then"
    )


@check(
    Loading,
    Rule(
        code="CK218",
        name="fused-split-mismatch",
        level=Level.WARNING,
        message="`{key}` {shape}, {where}, is as large as {pieces} together{other}",
        why="A refactor fused the projections of query, key and value, or took them apart. The "
        "order within the fused tensor is the old code's choice (q, k, v; k, v, q; interleaved by "
        "head): shapes do not tell it, and a wrong order loads without an error.",
        fix="Look up the order in the code that has the fused tensor, put the keys of this plan "
        "into it, and run ckptool migrate with --plan and --input. In plan.toml: {plan}",
        example='state = {"attn.qkv.weight": torch.ones(12, 4)}\n'
        'expected = ["attn.q.weight", "attn.k.weight", "attn.v.weight"]  # each [4, 4]',
    ),
)
def fused_split(loading: Loading) -> Iterator[Hit]:
    expected = {key: held.tensor for key, held in loading.module.saved.items()}
    for one in loading.fused:
        whole = (loading.state.tensors if one.split else expected)[one.whole]
        yield hit(
            one.whole,
            shape=list(whole.shape),
            where="unexpected in the file" if one.split else "missing from the file",
            pieces=", ".join(f"`{piece}`" for piece in one.pieces),
            other=", which are missing" if one.split else ", which are unexpected",
            plan=_plan(one),
            keys=[one.whole, *one.pieces],
        )


def _plan(one: Fused) -> str:
    """Return the split or concat operation as one line of TOML for a plan file."""
    fields: dict[str, object] = {"op": "split" if one.split else "concat"}
    whole, pieces = one.whole, list(one.pieces)
    fields |= {"key": whole, "into": pieces} if one.split else {"keys": pieces, "into": whole}
    if one.dim:
        fields["dim"] = one.dim
    if one.split and len(set(one.sizes)) > 1:
        fields["sizes"] = list(one.sizes)
    inside = ", ".join(f"{name} = {json.dumps(value)}" for name, value in fields.items())
    return f"ops = [{{{inside}}}]"


@check(
    Loading,
    Rule(
        code="CK501",
        name="tie-group-mismatch",
        level=Level.ERROR,
        message="`{key}` and {others} are one tensor in {who}{effect}",
        why="Tied weights are one tensor under two names. A file that does not agree lacks a name, "
        "or brings a tie to a module that trains the two apart.",
        fix="Let file and module agree on what is tied. {remedy}",
        example="model.head.weight = model.emb.weight\n"
        'save_file({"emb.weight": model.emb.weight}, "model.safetensors")\n'
        'model.load_state_dict(load_file("model.safetensors"))  # head.weight is missing',
    ),
)
def tie_groups(loading: Loading) -> Iterator[Hit]:
    for key, kept in loading.tied.items():
        one_name = key in loading.restored
        lenient = "load with strict=False: nothing is lost"
        way = "safetensors.torch.load_model(module, path) does; where load_state_dict() is called"
        yield hit(
            key,
            Level.NOTE if one_name else Level.WARNING,
            others=f"`{kept}`",
            who="the module",
            effect=f"; the file has it as `{kept}` only, as safetensors does",
            remedy=f"{way}, {lenient}" if one_name else f"{migrate_command(loading)}; or {lenient}",
            keys=[key, kept],
        )
    yield from _untied(loading)


def _untied(loading: Loading) -> Iterator[Hit]:
    """Yield groups of keys that are tied in the file and not in the module."""
    saved = loading.module.saved
    held = ties(one.tensor for one in saved.values())
    groups = {key: number for number, group in enumerate(held) for key in group}
    for group in ties(loading.state.tensors.values()):
        here = [key for key in group if key in saved]
        apart = {groups.get(key, key) for key in here}
        if len(apart) > 1:
            yield hit(
                here[0],
                Level.NOTE,
                others=_names(tuple(here[1:])),
                who="the file",
                effect=", and the module holds them apart: they load equal and train apart",
                remedy="Tie them in the module if they belong together: "
                "module.head.weight = module.embedding.weight, for example.",
                keys=here,
            )


def _names(keys: tuple[str, ...]) -> str:
    return ", ".join(f"`{key}`" for key in keys)


_LEAST: Final = 2
"""Number of buffers; with fewer missing ones CK605 stays silent."""


@check(
    Loading,
    Rule(
        code="CK605",
        name="converter-dropped-buffers",
        level=Level.ERROR,
        message="all parameters are in the file and none of the {count} buffers that the module "
        "does not make again itself: a converter that copied parameters only, from `{key}` on",
        why="Scripts that go through named_parameters(), or take the weights from an optimizer, "
        "lose running statistics. With strict=False the model runs on mean 0 and variance 1.",
        fix="Convert again from state_dict(); or take the buffers from a file that has them: "
        "ckptool migrate ... --inject {key}=file:DONOR#{key}, and so on.",
        example="norm = nn.BatchNorm1d(2)\nsave_file(dict(norm.named_parameters()), path)",
    ),
)
def dropped_buffers(loading: Loading) -> Iterator[Hit]:
    saved = loading.module.saved
    buffers = [held for held in saved.values() if held.kind is Kind.BUFFER]
    learnt = [h.key for h in buffers if h.statistic or h.constancy is not Constancy.CONSTANT]
    missing = {key for key in loading.missing_keys if key in saved}
    whole = loading.coverage == 1.0 and not loading.mismatched
    parameters = any(held.kind is Kind.PARAMETER for held in saved.values())
    only = missing <= {held.key for held in buffers} and missing >= {*learnt}
    if whole and parameters and only and len(learnt) >= _LEAST and not loading.explained & missing:
        yield hit(learnt[0], count=len(learnt), keys=learnt)
