"""ModuleDiff -> hits: keys of the file that the module lacks (CK204-CK206, CK214, CK220)."""

from collections.abc import Iterator

from ckptool.compare.changes import Unexpected
from ckptool.compare.module_diff import ModuleDiff
from ckptool.compare.parts import has_auxiliary_name
from ckptool.compare.states import list_placeholders
from ckptool.phrases import quote_python
from ckptool.rules.fixes.commands import format_migrate_command
from ckptool.rules.fixes.subtrees import SubtreeFinder, format_drop_code
from ckptool.rules.load.missing_keys import iter_unexplained_missing
from ckptool.rules.quantization import find_quantized_keys
from ckptool.rules.registry import MIGRATE, Level, Rule, RuleHit, check, hit


def _iter_unexplained_unexpected(diff: ModuleDiff) -> Iterator[Unexpected]:
    """Yield the unexpected tensors that no rename, tie or other form in the module explains."""
    explained_keys = diff.explained_keys | {*list_placeholders(diff.state)}
    for change in diff.changes:
        if isinstance(change, Unexpected) and change.key not in explained_keys:
            yield change


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
    for change in _iter_unexplained_unexpected(diff):
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
    for change in _iter_unexplained_unexpected(diff):
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
    for change in _iter_unexplained_unexpected(diff):
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
    for change in _iter_unexplained_unexpected(diff):
        if has_auxiliary_name(change.key) and _matches_unsaved_value(diff, change.key) is None:
            yield hit(change.key, whose="by its name")
    for module_tensor in iter_unexplained_missing(diff):
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
