"""ModuleDiff -> hits: tensors in another form, tie or file (CK217, CK218, CK501, CK605)."""

import json
import shlex
from collections.abc import Iterator
from typing import Final

from ckptool.compare import ModuleDiff
from ckptool.fused import FusedProjection
from ckptool.model import Constancy, Kind, tied_keys
from ckptool.rules.registry import Level, Rule, RuleHit, check, hit
from ckptool.styles import ParametrizationStyle, Reparametrization


def format_migrate_command(diff: ModuleDiff) -> str:
    """Return the `ckptool migrate` command that writes a loadable file."""
    path = shlex.quote(str(diff.checkpoint.path))
    return f"ckptool migrate {path} -o NEW -m {diff.module.target}"


@check(
    ModuleDiff,
    Rule(
        code="CK217",
        name="reparam-style-mismatch",
        level=Level.WARNING,
        message="`{key}` is kept by {have} in the file and by {want} in the module{bridge}",
        why=(
            "Normalised and pruned layers save other tensors than the weight that they compute "
            "with, and torch has two sets of names for them. With strict=False the layer stays at "
            "random."
        ),
        fix="Bring both to one form. {remedy}",
        example=(
            "old = nn.utils.spectral_norm(nn.Linear(3, 3))\n"
            "new = nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3))\n"
            "new.load_state_dict(old.state_dict())"
        ),
    ),
)
def find_reparametrization_mismatches(diff: ModuleDiff) -> Iterator[RuleHit]:
    for reparametrization in diff.reparametrizations:
        yield hit(
            reparametrization.parameter,
            Level.NOTE if reparametrization.handled_by_torch_hook else None,
            have=_describe_style(reparametrization.file_style),
            want=_describe_style(reparametrization.module_style),
            bridge=(
                ": torch's own hook renames it while it loads"
                if reparametrization.handled_by_torch_hook
                else ""
            ),
            remedy=_describe_reparametrization_fix(reparametrization, format_migrate_command(diff)),
            keys=[*reparametrization.file_keys, *reparametrization.module_keys],
            renames=dict(reparametrization.renames),
        )


def _describe_style(style: ParametrizationStyle) -> str:
    return (
        style.value if style is not ParametrizationStyle.PLAIN else "itself, as a plain parameter,"
    )


def _describe_reparametrization_fix(reparametrization: Reparametrization, command: str) -> str:
    if reparametrization.handled_by_torch_hook:
        return f"Nothing to load it; for loaders that compare names themselves: {command}"
    if reparametrization.renames:
        return f"Only the names differ: {command}"
    parameter = reparametrization.parameter
    if (
        reparametrization.file_style is ParametrizationStyle.PRUNED
        and reparametrization.module_style is ParametrizationStyle.PLAIN
    ):
        return f"The mask can be multiplied in for good: {command}"
    if reparametrization.file_style is ParametrizationStyle.PLAIN:
        return (
            "Load the plain file into the module before it is wrapped"
            f" ({reparametrization.module_style}), and save its state_dict then"
        )
    codes = {
        ParametrizationStyle.OLD_WEIGHT_NORM: "weight = torch._weight_norm({v}, {g}, 0)",
        ParametrizationStyle.NEW_WEIGHT_NORM: "weight = torch._weight_norm({v}, {g}, 0)",
    }
    code = codes.get(reparametrization.file_style)
    if code is not None and reparametrization.module_style is ParametrizationStyle.PLAIN:
        g, v = (f'state_dict["{key}"]' for key in reparametrization.file_keys)
        return f"Compute what the layer computed (dim=0): {code.format(g=g, v=v)}"
    return (
        f"Wrap `{parameter}` in the module as it was when the file was saved"
        f" ({reparametrization.file_style}), load, and take that off or change it then"
    )


@check(
    ModuleDiff,
    Rule(
        code="CK218",
        name="fused-split-mismatch",
        level=Level.WARNING,
        message="`{key}` {shape}, {where}, is as large as {pieces} together{other}",
        why=(
            "A refactor fused the projections of query, key and value, or took them apart. The"
            " order within the fused tensor is the old code's choice (q, k, v; k, v, q; interleaved"
            " by head): shapes do not tell it, and a wrong order loads without an error."
        ),
        fix=(
            "Look up the order in the code that has the fused tensor, put the keys of this plan "
            "into it, and run ckptool migrate with --plan and --input. In plan.toml: {plan}"
        ),
        example=(
            'state = {"attn.qkv.weight": torch.ones(12, 4)}\n'
            'expected = ["attn.q.weight", "attn.k.weight", "attn.v.weight"]  # each [4, 4]'
        ),
    ),
)
def find_projection_mismatches(diff: ModuleDiff) -> Iterator[RuleHit]:
    expected = {
        key: module_tensor.tensor for key, module_tensor in diff.module.saved_tensors.items()
    }
    for projection in diff.fused_projections:
        fused_tensor = (diff.state.tensors if projection.needs_split else expected)[
            projection.fused_key
        ]
        yield hit(
            projection.fused_key,
            shape=list(fused_tensor.shape),
            where="unexpected in the file" if projection.needs_split else "missing from the file",
            pieces=", ".join(f"`{piece}`" for piece in projection.piece_keys),
            other=", which are missing" if projection.needs_split else ", which are unexpected",
            plan=_format_plan_operation(projection),
            keys=[projection.fused_key, *projection.piece_keys],
        )


def _format_plan_operation(projection: FusedProjection) -> str:
    """Return the split or concat operation as one line of TOML for a plan file."""
    fields: dict[str, object] = {"op": "split" if projection.needs_split else "concat"}
    fused_key, piece_keys = projection.fused_key, list(projection.piece_keys)
    fields |= (
        {"key": fused_key, "into": piece_keys}
        if projection.needs_split
        else {"keys": piece_keys, "into": fused_key}
    )
    if projection.dim:
        fields["dim"] = projection.dim
    if projection.needs_split and len(set(projection.piece_sizes)) > 1:
        fields["sizes"] = list(projection.piece_sizes)
    toml_fields = ", ".join(f"{name} = {json.dumps(value)}" for name, value in fields.items())
    return f"ops = [{{{toml_fields}}}]"


@check(
    ModuleDiff,
    Rule(
        code="CK501",
        name="tie-group-mismatch",
        level=Level.ERROR,
        message="`{key}` and {others} are one tensor in {who}{effect}",
        why=(
            "Tied weights are one tensor under two names. A file that does not agree lacks a name, "
            "or brings a tie to a module that trains the two apart."
        ),
        fix="Let file and module agree on what is tied. {remedy}",
        example=(
            "model.head.weight = model.emb.weight\n"
            'save_file({"emb.weight": model.emb.weight}, "model.safetensors")\n'
            'model.load_state_dict(load_file("model.safetensors"))  # head.weight is missing'
        ),
    ),
)
def find_tie_mismatches(diff: ModuleDiff) -> Iterator[RuleHit]:
    for key, file_key in diff.tied_missing_keys.items():
        is_restored = key in diff.retied_keys
        lenient_advice = "load with strict=False: nothing is lost"
        loader_advice = (
            "safetensors.torch.load_model(module, path) does; where load_state_dict() is called"
        )
        yield hit(
            key,
            Level.NOTE if is_restored else Level.WARNING,
            others=f"`{file_key}`",
            who="the module",
            effect=f"; the file has it as `{file_key}` only, as safetensors does",
            remedy=(
                f"{loader_advice}, {lenient_advice}"
                if is_restored
                else f"{format_migrate_command(diff)}; or {lenient_advice}"
            ),
            keys=[key, file_key],
        )
    yield from _find_untied_groups(diff)


def _find_untied_groups(diff: ModuleDiff) -> Iterator[RuleHit]:
    """Yield groups of keys that are tied in the file and not in the module."""
    saved_tensors = diff.module.saved_tensors
    module_groups = tied_keys(module_tensor.tensor for module_tensor in saved_tensors.values())
    group_numbers = {key: number for number, group in enumerate(module_groups) for key in group}
    for group in tied_keys(diff.state.tensors.values()):
        saved_keys = [key for key in group if key in saved_tensors]
        group_ids = {group_numbers.get(key, key) for key in saved_keys}
        if len(group_ids) > 1:
            yield hit(
                saved_keys[0],
                Level.NOTE,
                others=_quote_keys(tuple(saved_keys[1:])),
                who="the file",
                effect=", and the module holds them apart: they load equal and train apart",
                remedy=(
                    "Tie them in the module if they belong together: "
                    "module.head.weight = module.embedding.weight, for example."
                ),
                keys=saved_keys,
            )


def _quote_keys(keys: tuple[str, ...]) -> str:
    return ", ".join(f"`{key}`" for key in keys)


_MIN_DROPPED_BUFFERS: Final = 2
"""Number of buffers; with fewer missing ones CK605 stays silent."""


@check(
    ModuleDiff,
    Rule(
        code="CK605",
        name="converter-dropped-buffers",
        level=Level.ERROR,
        message=(
            "all parameters are in the file and none of the {count} buffers that the module "
            "does not make again itself: a converter that copied parameters only, from `{key}` on"
        ),
        why=(
            "Scripts that go through named_parameters(), or take the weights from an optimizer, "
            "lose running statistics. With strict=False the model runs on mean 0 and variance 1."
        ),
        fix=(
            "Convert again from state_dict(); or take the buffers from a file that has them: "
            "ckptool migrate ... --inject {key}=file:DONOR#{key}, and so on."
        ),
        example="norm = nn.BatchNorm1d(2)\nsave_file(dict(norm.named_parameters()), path)",
    ),
)
def find_dropped_buffers(diff: ModuleDiff) -> Iterator[RuleHit]:
    saved_tensors = diff.module.saved_tensors
    buffers = [
        module_tensor
        for module_tensor in saved_tensors.values()
        if module_tensor.kind is Kind.BUFFER
    ]
    learnt_keys = [
        module_tensor.key
        for module_tensor in buffers
        if module_tensor.is_statistic or module_tensor.constancy is not Constancy.CONSTANT
    ]
    missing = {key for key in diff.missing_keys if key in saved_tensors}
    is_complete = diff.coverage == 1.0 and not diff.shape_mismatches
    has_parameters = any(
        module_tensor.kind is Kind.PARAMETER for module_tensor in saved_tensors.values()
    )
    only_buffers_missing = missing <= {
        module_tensor.key for module_tensor in buffers
    } and missing >= {*learnt_keys}
    if (
        is_complete
        and has_parameters
        and only_buffers_missing
        and len(learnt_keys) >= _MIN_DROPPED_BUFFERS
        and not diff.explained_keys & missing
    ):
        yield hit(learnt_keys[0], count=len(learnt_keys), keys=learnt_keys)
