"""CK217, CK218: parameters that file and module keep in different forms."""

import json
from collections.abc import Iterator

from ckptool.compare.fused_projections import FusedProjection
from ckptool.compare.module_diff import ModuleDiff
from ckptool.compare.parametrization.parametrization_styles import ParametrizationStyle
from ckptool.compare.parametrization.reparametrization import Reparametrization
from ckptool.phrases import quote_code
from ckptool.rules.fixes.commands import format_migrate_command
from ckptool.rules.registry import Level, Rule, RuleHit, check, hit


@check(
    ModuleDiff,
    Rule(
        code="CK217",
        name="reparam-style-mismatch",
        level=Level.WARNING,
        summary="`{key}` is stored by {have} in the file and by {want} in the module{bridge}",
        why=(
            "Normalised and pruned layers do not save the weight that they compute with but the "
            "tensors it is computed from, and torch has two sets of names for those. With "
            "strict=False the layer stays randomly initialised."
        ),
        fix="Bring both to the same form. {remedy}",
        general_advice=(
            "Bring both to the same form: ckptool migrate FILE -o NEW -m MODULE; or remove the "
            "parametrization before saving, with "
            "torch.nn.utils.parametrize.remove_parametrizations(module, NAME)."
        ),
        example=(
            "old = nn.utils.spectral_norm(nn.Linear(3, 3))\n"
            "new = nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3))\n"
            "new.load_state_dict(old.state_dict())"
        ),
    ),
)
def find_reparametrization_mismatches(diff: ModuleDiff) -> Iterator[RuleHit]:
    for reparametrization in diff.reparametrizations:
        keys = [*reparametrization.file_keys, *reparametrization.module_keys]
        yield hit(
            reparametrization.parameter,
            Level.NOTE if reparametrization.handled_by_torch_hook else None,
            keys,
            have=_describe_style(reparametrization.file_style),
            want=_describe_style(reparametrization.module_style),
            bridge=(
                ": torch's own hook renames it while it loads"
                if reparametrization.handled_by_torch_hook
                else ""
            ),
            remedy=_describe_reparametrization_fix(reparametrization, format_migrate_command(diff)),
            keys=keys,
            renames=dict(reparametrization.renames),
        )


def _describe_style(style: ParametrizationStyle) -> str:
    return (
        style.value if style is not ParametrizationStyle.PLAIN else "itself, as a plain parameter,"
    )


def _describe_reparametrization_fix(reparametrization: Reparametrization, command: str) -> str:
    if reparametrization.handled_by_torch_hook:
        return f"Nothing, to load it; for loaders that compare names themselves: {command}"
    if reparametrization.renames:
        return f"Only the names differ: {command}"
    obstacle = reparametrization.conversion.obstacle
    if not obstacle:
        return f"{_describe_arithmetic(reparametrization)}: {command}"
    if reparametrization.file_style is ParametrizationStyle.PLAIN:
        return (
            "Load the plain file into the module before the parametrization is applied "
            f"({reparametrization.module_style}), and then save its state_dict: {obstacle}"
        )
    return (
        f"Apply to `{reparametrization.parameter}` in the module what it had when the file was "
        f"saved ({reparametrization.file_style}), load, and then remove or change it: {obstacle}"
    )


def _describe_arithmetic(reparametrization: Reparametrization) -> str:
    """Return what `migrate` computes from the file's tensors."""
    file_style, module_style = reparametrization.file_style, reparametrization.module_style
    if file_style.is_weight_norm:
        computed = "The weight is v * (g / ||v||), which is what the layer computed with"
    elif file_style.is_spectral_norm:
        computed = "The weight is the original / (u^T W v), which is what the layer computed with"
    elif file_style is ParametrizationStyle.PRUNED:
        computed = "The mask can be applied permanently"
    elif module_style.is_weight_norm:
        return "g = ||weight|| and v = weight give the same weight, up to rounding"
    else:
        return "A mask of ones gives the same weight"
    if module_style is ParametrizationStyle.PLAIN:
        return computed
    return f"{computed}, and can be brought to {module_style} from there"


@check(
    ModuleDiff,
    Rule(
        code="CK218",
        name="fused-split-mismatch",
        level=Level.WARNING,
        summary="`{key}` {shape}, {where}, is as large as {pieces} together{other}",
        why=(
            "A refactor fused the projections of query, key and value, or took them apart. The"
            " order within the fused tensor is the old code's choice (q, k, v; k, v, q; interleaved"
            " by head): shapes do not determine it, and a wrong order loads without an error."
        ),
        fix="Split or concatenate it in the order used by the code that has the fused tensor. "
        "{remedy}",
        general_advice=(
            "Split or concatenate it in the order used by the code that has the fused tensor: "
            "`split` or `concat` in a plan for ckptool migrate --plan."
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
        keys = [projection.fused_key, *projection.piece_keys]
        yield hit(
            projection.fused_key,
            None,
            keys,
            shape=list(fused_tensor.shape),
            where="unexpected in the file" if projection.needs_split else "missing from the file",
            pieces=", ".join(map(quote_code, projection.piece_keys)),
            other=", which are missing" if projection.needs_split else ", which are unexpected",
            remedy=_describe_projection_fix(projection, format_migrate_command(diff)),
            keys=keys,
            **({} if projection.is_torch_attention else {"plan": _format_step(projection)}),
        )


def _describe_projection_fix(projection: FusedProjection, command: str) -> str:
    if projection.is_torch_attention:
        return f"All are names of torch.nn.MultiheadAttention, whose order is fixed: {command}"
    unknown = (
        "That is torch.nn.MultiheadAttention, with query, key and value in this order: look up"
        " whether the heads in the code that made the file are laid out alike"
        if projection.has_torch_order
        else "Look it up there"
    )
    return (
        f"{unknown}, put the keys of this plan into it, and run ckptool migrate with --plan and"
        f" --input. In plan.toml: {_format_step(projection)}"
    )


def _format_step(projection: FusedProjection) -> str:
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
