"""ModuleDiff -> hits: keys of the module that the file lacks (CK201-CK203, CK605)."""

from collections.abc import Iterator
from typing import Final

from ckptool.compare.changes import Missing
from ckptool.compare.explain_key import describe_origin
from ckptool.compare.module_diff import ModuleDiff
from ckptool.compare.placeholders import find_placeholder_targets
from ckptool.model import Kind, ModuleTensor
from ckptool.phrases import quote_python
from ckptool.rules.fixes.commands import DONOR_SOURCE, format_inject_command, format_migrate_command
from ckptool.rules.fixes.subtrees import SubtreeFinder
from ckptool.rules.registry import MIGRATE, Level, Rule, RuleHit, check, hit


def iter_unexplained_missing(diff: ModuleDiff) -> Iterator[ModuleTensor]:
    """Yield the missing tensors that no rename, tie or other form in the file explains.

    Missing is also what has another tensor's value in the file, one that is to be renamed.
    """
    explained_keys = diff.explained_keys | find_placeholder_targets(diff).keys()
    for change in diff.changes:
        if isinstance(change, Missing) and change.key not in explained_keys:
            yield diff.module.tensors[change.key]
    for key in diff.vacated_keys:
        yield diff.module.tensors[key]


def _build_missing_facts(module_tensor: ModuleTensor, subtree: str) -> dict[str, object]:
    return {
        "subtree": subtree,
        "kind": str(module_tensor.kind),
        "owner": module_tensor.owner,
        "shape": list(module_tensor.tensor.shape),
        "dtype": module_tensor.tensor.dtype,
        "nbytes": module_tensor.tensor.nbytes,
        "constancy": str(module_tensor.constancy),
        "where": module_tensor.assigned_at,
    }


@check(
    ModuleDiff,
    Rule(
        code="CK201",
        name="missing-parameter",
        level=Level.ERROR,
        summary="`{key}`, {dtype} {shape}, is a parameter of the module and not in the file{kept}",
        why=(
            "Strict loading raises. With strict=False the parameter keeps its random initial value."
        ),
        fix="{remedy}",
        general_advice=(
            "Find the tensor under another name, train it, or take it from another checkpoint of "
            f"the same model: {MIGRATE} --inject KEY=file:DONOR#KEY"
        ),
        example=(
            "state = nn.Linear(2, 2).state_dict()\n"
            'del state["bias"]\n'
            "nn.Linear(2, 2).load_state_dict(state)"
        ),
    ),
)
def find_missing_parameters(diff: ModuleDiff) -> Iterator[RuleHit]:
    subtrees = SubtreeFinder(diff.state.tensors)
    parameters = [t for t in iter_unexplained_missing(diff) if t.kind is not Kind.BUFFER]
    keys = [p.key for p in parameters if _is_dense(p) and not _is_kept(diff, p)]
    command = format_inject_command(diff, keys, DONOR_SOURCE) if keys else ""
    for parameter in parameters:
        code = _format_copy_code(parameter.key, 'torch.load("DONOR")')
        remedy = (
            "Find the tensor under another name, train it, or take it from another checkpoint of"
            " the same model (DONOR stands for its path):"
            f" {command if _is_dense(parameter) else code}"
        )
        yield _build_missing_hit(diff, parameter, subtrees, remedy)


def _is_kept(diff: ModuleDiff, module_tensor: ModuleTensor) -> bool:
    """Whether the file is a pickled module that has the tensor as an attribute; see `migrate`."""
    attribute = diff.state.find_unsaved(module_tensor.key)
    return (
        attribute is not None
        and attribute.shape == module_tensor.tensor.shape
        and _is_dense(module_tensor)
    )


def _build_missing_hit(
    diff: ModuleDiff,
    module_tensor: ModuleTensor,
    subtrees: SubtreeFinder,
    remedy: str,
    level: Level | None = None,
    **facts: object,
) -> RuleHit:
    """Return the hit of a missing tensor; of one that the file keeps elsewhere, a warning.

    Args:
        diff: the comparison.
        module_tensor: the missing tensor.
        subtrees: finds the largest sub-tree of which the file has nothing.
        remedy: what to do if the file does not have it as an attribute.
        level: level in this case; None for that of the rule.
        **facts: further facts.
    """
    is_kept = _is_kept(diff, module_tensor)
    if is_kept:
        remedy = f"Migrate the file, which saves that value: {format_migrate_command(diff)}"
        level = Level.WARNING
    return hit(
        module_tensor.key,
        level,
        kept="'s state_dict, but among the pickled module's attributes" if is_kept else "",
        in_file=is_kept,
        remedy=remedy,
        **facts,
        **_build_missing_facts(module_tensor, subtrees.find_absent(module_tensor.key)),
    )


def _is_dense(module_tensor: ModuleTensor) -> bool:
    """Whether a migration can inject it; quantised and sparse tensors it cannot."""
    return module_tensor.tensor.layout == "strided"


def _format_own_code(key: str) -> str:
    """Return code that takes a tensor of any layout from the module itself."""
    return _format_copy_code(key, "module.state_dict()")


def _format_copy_code(key: str, source: str) -> str:
    """Return code that takes a tensor of any layout from another state_dict."""
    return f"state_dict[{quote_python(key)}] = {source}[{quote_python(key)}]"


@check(
    ModuleDiff,
    Rule(
        code="CK202",
        name="missing-statistics-buffer",
        level=Level.ERROR,
        summary="`{key}`, {dtype} {shape}, is not in the file{kept}: a buffer that {origin}",
        why=(
            "Its value came from training, calibration, a loader or a random number generator; "
            "the constructor cannot recreate it. With strict=False the model runs with the "
            "initial value. If that is not known, it is a warning: kwargs= or fresh= say how "
            "a live module is built."
        ),
        fix="{remedy}",
        general_advice=(
            "Take it from a checkpoint that has it; converters that copy only parameters drop "
            f"buffers. If the constructor's value is right: {MIGRATE} --inject KEY=constructor"
        ),
        example=(
            "state = nn.BatchNorm1d(4).state_dict()\n"
            'del state["running_mean"]\n'
            "nn.BatchNorm1d(4).load_state_dict(state)"
        ),
    ),
)
def find_missing_statistics(diff: ModuleDiff) -> Iterator[RuleHit]:
    statistics = [
        module_tensor
        for module_tensor in iter_unexplained_missing(diff)
        if module_tensor.kind is Kind.BUFFER and not module_tensor.is_recomputable
    ]
    keys = [t.key for t in statistics if _is_dense(t) and not _is_kept(diff, t)]
    subtrees = SubtreeFinder(diff.state.tensors)
    command = format_inject_command(diff, keys, "constructor") if keys else ""
    for module_tensor in statistics:
        own_value = command if _is_dense(module_tensor) else _format_own_code(module_tensor.key)
        remedy = (
            "Take it from a checkpoint that has it; converters that copy only parameters drop"
            f" buffers. If the constructor's value is right: {own_value}"
        )
        level = Level.ERROR if module_tensor.waits_for_data else Level.WARNING
        origin = describe_origin(module_tensor)
        yield _build_missing_hit(diff, module_tensor, subtrees, remedy, level, origin=origin)


@check(
    ModuleDiff,
    Rule(
        code="CK203",
        name="missing-recomputable-buffer",
        level=Level.WARNING,
        summary=(
            "`{key}`, {dtype} {shape}, is a buffer that is not in the file{kept}; the "
            "constructor computes the same value every time"
        ),
        why=(
            "Strict loading raises although nothing was lost, unless the old code modified the "
            "value after construction: a state_dict does not record that."
        ),
        fix="{remedy}",
        general_advice=f"Migrate the file: {MIGRATE}",
        example=(
            "old.mask = torch.tril(torch.ones(4, 4))\n"
            'new.register_buffer("mask", torch.tril(torch.ones(4, 4)))\n'
            "new.load_state_dict(old.state_dict())"
        ),
    ),
)
def find_missing_recomputable_buffers(diff: ModuleDiff) -> Iterator[RuleHit]:
    subtrees = SubtreeFinder(diff.state.tensors)
    for module_tensor in iter_unexplained_missing(diff):
        if module_tensor.kind is Kind.BUFFER and module_tensor.is_recomputable:
            remedy = (
                f"Migrate the file: {format_migrate_command(diff)}"
                if _is_dense(module_tensor)
                else f"In code: {_format_own_code(module_tensor.key)}"
            )
            yield _build_missing_hit(diff, module_tensor, subtrees, remedy)


_MIN_DROPPED_BUFFERS: Final = 2
"""Number of buffers; with fewer missing ones CK605 stays silent."""


@check(
    ModuleDiff,
    Rule(
        code="CK605",
        name="buffers-left-out",
        level=Level.ERROR,
        summary=(
            "all parameters are in the file, but none of the {count} buffers that the "
            "constructor does not recreate"
        ),
        detail="from `{key}` on; named_parameters() and optimizers have no buffers",
        why=(
            "Scripts that iterate over named_parameters(), or take the weights from an "
            "optimizer, lose running statistics. With strict=False the model runs with mean 0 "
            "and variance 1."
        ),
        fix=(
            "Convert again from state_dict(); or copy the buffers from a file that has them (DONOR "
            "stands for its path): {command}"
        ),
        general_command=MIGRATE,
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
    learnt_keys = [module_tensor.key for module_tensor in buffers if module_tensor.waits_for_data]
    if len(learnt_keys) < _MIN_DROPPED_BUFFERS:
        return
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
        and not diff.explained_keys & missing
    ):
        missing_keys = [key for key in learnt_keys if key in missing]
        command = format_inject_command(diff, missing_keys, DONOR_SOURCE)
        yield hit(learnt_keys[0], count=len(learnt_keys), keys=learnt_keys, command=command)
