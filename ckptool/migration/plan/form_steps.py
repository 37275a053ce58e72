"""ModuleDiff -> the steps that bring parameters to the module's form, or questions where none do.

A form is how a parameter is kept: plain, computed by one of torch's norms or masks, or query, key
and value in one tensor or three. What torch computes is arithmetic, and a step; what other code
computes is a question.
"""

from collections.abc import Iterator
from typing import NamedTuple

from ckptool.compare.fused_projections import FusedProjection
from ckptool.compare.module_diff import ModuleDiff
from ckptool.compare.parametrization.parametrization_styles import ParametrizationStyle
from ckptool.compare.parametrization.reparametrization import Reparametrization
from ckptool.migration.plan.key_operations import InjectTensor, RenameKeys
from ckptool.migration.plan.plan_file import Op
from ckptool.migration.plan.reparametrization_operations import (
    AddWeightNorm,
    RemoveSpectralNorm,
    RemoveWeightNorm,
)
from ckptool.migration.plan.tensor_operations import BakeMask, ConcatTensors, SplitTensor


class FormQuestion(NamedTuple):
    """A form that no arithmetic leads to, or not without a fact that is not in the file."""

    problem: str
    steps: tuple[Op, ...] = ()
    """Proposed steps, unverified."""
    hint: str = ""


def iter_form_steps(diff: ModuleDiff) -> Iterator[Op]:
    """Yield the steps of each parameter that torch's own arithmetic brings to the module's form."""
    for reparametrization in diff.reparametrizations:
        if not reparametrization.conversion.obstacle:
            yield from _iter_parameter_steps(reparametrization, diff)
    for projection in diff.fused_projections:
        if projection.is_torch_attention:
            yield _build_projection_step(
                projection, "query, key and value in the order of torch.nn.MultiheadAttention"
            )


def iter_form_questions(diff: ModuleDiff) -> Iterator[FormQuestion]:
    """Yield a question for each parameter and projection that is left in another form."""
    for reparametrization in diff.reparametrizations:
        if not reparametrization.handled_by_torch_hook:
            obstacle = reparametrization.conversion.obstacle
            yield FormQuestion(
                f"`{reparametrization.parameter}` is kept by {reparametrization.file_style} in the"
                f" file and by {reparametrization.module_style} in the module (CK217)"
                f"{obstacle and f', and {obstacle}'}",
                hint="ckptool diff shows how to convert one into the other",
            )
    for projection in diff.fused_projections:
        if projection.has_torch_order:
            unknown = (
                "which torch stores in this order, with heads that the file's code may arrange"
            )
            unknown += " otherwise"
            why = "torch's order, if the heads are arranged in the same way: check the code (CK218)"
        else:
            unknown = "in an order that the file does not record"
            why = "the order is a guess: check the code (CK218)"
        pieces = ", ".join(f"`{piece}`" for piece in projection.piece_keys)
        yield FormQuestion(
            f"`{projection.fused_key}` is {pieces} in one (CK218), {unknown}",
            (_build_projection_step(projection, why),),
        )


def _iter_parameter_steps(reparametrization: Reparametrization, diff: ModuleDiff) -> Iterator[Op]:
    why = f"{reparametrization.module_style} for {reparametrization.file_style} (CK217)"
    if reparametrization.renames:
        for old, new in reparametrization.renames.items():
            yield RenameKeys(key=old, to=new, why=why)
        return
    yield from _iter_steps_to_plain(reparametrization, diff, why)
    yield from _iter_steps_from_plain(reparametrization, diff, why)


def _iter_steps_to_plain(
    reparametrization: Reparametrization, diff: ModuleDiff, why: str
) -> Iterator[Op]:
    """Yield the step that computes the plain weight as the layer did; none if it is plain."""
    style, keys = reparametrization.file_style, reparametrization.file_keys
    key, dim = reparametrization.parameter, reparametrization.conversion.file_dim
    dtype = diff.state.tensors[keys[0]].dtype
    computed = f"computed in {dtype}"
    if style.is_weight_norm:
        g, v = keys
        why = f"{why}: v * (g / ||v||), {computed} as in each forward pass"
        if style is ParametrizationStyle.NEW_WEIGHT_NORM:
            why = f"{why}; assumed from the shapes: other parametrizations may use these names"
        yield RemoveWeightNorm(key=key, g=g, v=v, dim=dim, why=why)
    elif style.is_spectral_norm:
        original, u, v = keys
        why = f"{why}: the weight / (u^T W v), {computed} as in eval mode"
        yield RemoveSpectralNorm(key=key, original=original, u=u, v=v, dim=dim, why=why)
    elif style is ParametrizationStyle.PRUNED:
        original, mask = keys
        yield BakeMask(key=key, original=original, mask=mask, why=f"{why}: permanently")


def _iter_steps_from_plain(
    reparametrization: Reparametrization, diff: ModuleDiff, why: str
) -> Iterator[Op]:
    """Yield the steps that make the module's tensors of the plain weight; none if it is plain."""
    style, keys = reparametrization.module_style, reparametrization.module_keys
    key, dim = reparametrization.parameter, reparametrization.conversion.module_dim
    if style.is_weight_norm:
        g, v = keys
        why = f"{why}: g = ||weight|| and v = weight, as torch does; equal up to rounding"
        yield AddWeightNorm(key=key, g=g, v=v, dim=dim, why=why)
    elif style is ParametrizationStyle.PRUNED:
        original, mask = keys
        weight = diff.module.tensors[original].tensor
        dtype = diff.state.tensors[reparametrization.file_keys[0]].dtype
        yield RenameKeys(key=key, to=original, why=why)
        yield InjectTensor(
            key=mask,
            source="literal:1",
            dtype=dtype,
            shape=weight.shape,
            why="a mask of ones: nothing is pruned, and the layer computes with the same weight",
        )


def _build_projection_step(projection: FusedProjection, why: str) -> Op:
    if not projection.needs_split:
        return ConcatTensors(
            keys=projection.piece_keys, into=projection.fused_key, dim=projection.dim, why=why
        )
    sizes = projection.piece_sizes if len(set(projection.piece_sizes)) > 1 else ()
    return SplitTensor(
        key=projection.fused_key,
        into=projection.piece_keys,
        dim=projection.dim,
        sizes=sizes,
        why=why,
    )
