"""ModuleDiff -> hits: missing and unexpected keys, one by one (CK201-CK220)."""

from collections.abc import Iterator
from typing import Final

from ckptool.compare.changes import Missing, Unexpected
from ckptool.compare.explain_key import describe_origin
from ckptool.compare.module_diff import ModuleDiff
from ckptool.compare.parts import has_auxiliary_name
from ckptool.compare.placeholders import find_placeholder_targets
from ckptool.compare.states import list_placeholders
from ckptool.model import Kind, ModuleTensor
from ckptool.phrases import quote_python
from ckptool.rules.fixes.commands import DONOR_SOURCE, format_inject_command, format_migrate_command
from ckptool.rules.fixes.subtrees import SubtreeFinder, format_drop_code
from ckptool.rules.quantization import find_quantized_keys
from ckptool.rules.registry import MIGRATE, Level, Rule, RuleHit, check, hit


def _unexplained_missing(diff: ModuleDiff) -> Iterator[ModuleTensor]:
    """Yield the missing tensors that no rename, tie or other form in the file explains.

    Missing is also what has another tensor's value in the file, one that is to be renamed.
    """
    explained_keys = diff.explained_keys | find_placeholder_targets(diff).keys()
    for change in diff.changes:
        if isinstance(change, Missing) and change.key not in explained_keys:
            yield diff.module.tensors[change.key]
    for key in diff.vacated_keys:
        yield diff.module.tensors[key]


def _unexplained_unexpected(diff: ModuleDiff) -> Iterator[Unexpected]:
    """Yield the unexpected tensors that no rename, tie or other form in the module explains."""
    explained_keys = diff.explained_keys | {*list_placeholders(diff.state)}
    for change in diff.changes:
        if isinstance(change, Unexpected) and change.key not in explained_keys:
            yield change


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
    parameters = [t for t in _unexplained_missing(diff) if t.kind is not Kind.BUFFER]
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
        for module_tensor in _unexplained_missing(diff)
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
    for module_tensor in _unexplained_missing(diff):
        if module_tensor.kind is Kind.BUFFER and module_tensor.is_recomputable:
            remedy = (
                f"Migrate the file: {format_migrate_command(diff)}"
                if _is_dense(module_tensor)
                else f"In code: {_format_own_code(module_tensor.key)}"
            )
            yield _build_missing_hit(diff, module_tensor, subtrees, remedy)


def _is_none_buffer(diff: ModuleDiff, key: str) -> bool:
    """Whether the module registers `key` as a buffer that is None."""
    return key in diff.module.none_buffers


def _matches_unsaved_value(diff: ModuleDiff, key: str) -> bool | None:
    """Whether the value equals the module's unsaved tensor `key`; None if not compared."""
    module_tensor = diff.module.tensors.get(key)
    return None if module_tensor is None or module_tensor.is_saved else diff.equal_values.get(key)


@check(
    ModuleDiff,
    Rule(
        code="CK204",
        name="unexpected-key",
        level=Level.WARNING,
        summary="`{key}`, {what}, is in the file but not in the module's state_dict{why_not}",
        why="Strict loading raises. With strict=False the value is ignored.",
        fix=(
            "Rename it if the module has it under another name; drop it if it is not needed: {code}"
        ),
        general_advice=(
            "Rename it if the module has it under another name; drop it if it is not needed: "
            'state_dict.pop("KEY")'
        ),
        example=(
            'state = {**model.state_dict(), "head2.weight": torch.ones(7)}\n'
            "model.load_state_dict(state)"
        ),
        gate=Level.ERROR,
    ),
)
def find_unexpected_keys(diff: ModuleDiff) -> Iterator[RuleHit]:
    whats_by_key = dict(_iter_unexpected_keys(diff))
    subtrees = SubtreeFinder(diff.module.saved_tensors)
    keys_by_subtree = subtrees.group_keys(whats_by_key)
    for subtree, keys in keys_by_subtree.items():
        code = format_drop_code(keys, subtree, diff.state)
        for key in keys:
            what, why_not, nbytes = whats_by_key[key]
            yield hit(key, what=what, why_not=why_not, nbytes=nbytes, code=code, subtree=subtree)


def _iter_unexpected_keys(diff: ModuleDiff) -> Iterator[tuple[str, tuple[str, str, int]]]:
    """Yield (key, (what it is, why the module has no place for it, bytes))."""
    for change in _unexplained_unexpected(diff):
        key, tensor = change.key, change.actual
        is_compared = _matches_unsaved_value(diff, key) is not None
        if not is_compared and not has_auxiliary_name(key):
            reason = (
                "; there it is a buffer that is still None" if _is_none_buffer(diff, key) else ""
            )
            yield key, (f"{tensor.dtype} {list(tensor.shape)}", reason, tensor.nbytes)
    for key in diff.displaced_keys:
        tensor = diff.state.tensors[key]
        why_not = " left, once another tensor is renamed to it"
        yield key, (f"{tensor.dtype} {list(tensor.shape)}", why_not, tensor.nbytes)
    quantized_keys = find_quantized_keys(diff)
    for key in diff.unexpected_non_tensors:
        if not key.endswith("_extra_state") and key not in quantized_keys:
            yield key, (diff.state.non_tensors.get(key, "a state"), "", 0)


@check(
    ModuleDiff,
    Rule(
        code="CK205",
        name="unexpected-redundant-buffer",
        level=Level.NOTE,
        summary="`{key}` is in the file with the value that the module computes itself ({kind})",
        why="Strict loading raises on it, although dropping it changes nothing.",
        fix="Migrate the file: {command}",
        general_command=MIGRATE,
        example=(
            'old.register_buffer("position_ids", torch.arange(4))\n'
            'new.register_buffer("position_ids", torch.arange(4), persistent=False)\n'
            "new.load_state_dict(old.state_dict())"
        ),
    ),
)
def find_redundant_buffers(diff: ModuleDiff) -> Iterator[RuleHit]:
    for change in _unexplained_unexpected(diff):
        if _matches_unsaved_value(diff, change.key) is True:
            kind = str(diff.module.tensors[change.key].kind)
            yield hit(change.key, kind=kind, command=format_migrate_command(diff))


@check(
    ModuleDiff,
    Rule(
        code="CK206",
        name="unexpected-buffer-value-differs",
        level=Level.ERROR,
        summary="`{key}` is in the file with a different value than the module computes itself "
        "({kind})",
        why=(
            "Dropping the key, which is what strict=False does, gives a model that does not "
            "compute what the saved one did."
        ),
        fix=(
            "Make it a persistent buffer, or set it after loading: "
            "operator.attrgetter({key:py})(module).copy_(state_dict[{key:py}])"
        ),
        example=(
            'old.register_buffer("inv_freq", 500000.0 ** -torch.arange(0, 1, 0.25))\n'
            'new.register_buffer("inv_freq", 1e4 ** -torch.arange(0, 1, 0.25), persistent=False)\n'
            "new.load_state_dict(old.state_dict(), strict=False)"
        ),
    ),
)
def find_differing_buffers(diff: ModuleDiff) -> Iterator[RuleHit]:
    for change in _unexplained_unexpected(diff):
        if _matches_unsaved_value(diff, change.key) is False:
            yield hit(change.key, kind=str(diff.module.tensors[change.key].kind))


@check(
    ModuleDiff,
    Rule(
        code="CK214",
        name="auxiliary-keys",
        level=Level.NOTE,
        summary="`{key}` belongs to a loss, a metric or an auxiliary network (discriminator) "
        "({whose})",
        why=(
            "Class weights and metrics are saved with the model and make strict loading raise, "
            "although the model does not need them."
        ),
        fix="state_dict.pop({key:py}), or build the module with the same loss",
        example=(
            "trained.criterion = nn.CrossEntropyLoss(torch.ones(10))\n"
            "released.load_state_dict(trained.state_dict())"
        ),
    ),
)
def find_auxiliary_keys(diff: ModuleDiff) -> Iterator[RuleHit]:
    for change in _unexplained_unexpected(diff):
        if has_auxiliary_name(change.key) and _matches_unsaved_value(diff, change.key) is None:
            yield hit(change.key, whose="by its name")
    for module_tensor in _unexplained_missing(diff):
        owner = diff.module.modules.get(module_tensor.key.rpartition(".")[0])
        if owner is not None and owner.is_auxiliary:
            yield hit(module_tensor.key, whose=owner.name)


@check(
    ModuleDiff,
    Rule(
        code="CK220",
        name="extra-state-mismatch",
        level=Level.WARNING,
        summary="`{key}` is {which}",
        detail="state that a module returns from get_extra_state()",
        why=(
            "Strict loading raises on missing or unexpected extra state. It may contain scaling "
            "factors that the forward pass needs, or nothing at all."
        ),
        fix="{remedy}",
        general_advice=(
            "state_dict.pop(KEY) if the module does not expect it. If it is missing: "
            "state_dict[KEY] = module.state_dict()[KEY], if the initial value will do."
        ),
        example=(
            "state = model.state_dict()\n"
            "state = {k: v for k, v in state.items() if isinstance(v, torch.Tensor)}\n"
            "model.load_state_dict(state)  # without its _extra_state"
        ),
    ),
)
def find_extra_state_mismatches(diff: ModuleDiff) -> Iterator[RuleHit]:
    quantized_keys = find_quantized_keys(diff)
    for key in diff.missing_non_tensors:
        if key not in quantized_keys:
            code = f"state_dict[{quote_python(key)}] = module.state_dict()[{quote_python(key)}]"
            remedy = f"If the initial value is right: {code}"
            yield hit(key, which="expected by the module and not in the file", remedy=remedy)
    for key in diff.unexpected_non_tensors:
        if key.endswith("_extra_state"):
            remedy = f"state_dict.pop({quote_python(key)})"
            yield hit(key, which="in the file and not expected by the module", remedy=remedy)


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
