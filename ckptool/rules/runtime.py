"""Verification, ForwardEffects, UsageChanges -> hits: run-time problems (CK107, CK113, CK70x)."""

from collections.abc import Iterator
from typing import Final

from ckptool.model import Kind
from ckptool.phrases import quote_python
from ckptool.rules.fixes.commands import format_audit_command
from ckptool.rules.fixes.source_lines import (
    format_module_registration,
    format_registration,
    format_value_registration,
)
from ckptool.rules.fixes.state_code import format_attribute, format_tie_code
from ckptool.rules.registry import Level, Rule, RuleHit, check, check_other_subject, hit
from ckptool.verification.result import (
    DeviceMismatch,
    ForwardEffects,
    PythonChange,
    UsageChanges,
    Verification,
)

PYTHON_STATE: Final = "CK107"
"""Code of findings about plain Python values not in the state_dict."""


@check(
    ForwardEffects,
    Rule(
        code=PYTHON_STATE,
        name="python-state-mutated",
        level=Level.WARNING,
        summary=(
            "`{key}` of {owner} is a plain Python value that a forward pass changed from {before}"
            " to {after}"
        ),
        detail="no checkpoint has it",
        why=(
            "Flags and counters kept as Python values are reset by loading. A flag such as "
            "`initialized` then runs its data-dependent set-up again, over the loaded weights."
        ),
        fix="{remedy}",
        general_advice=(
            'self.register_buffer("NAME", torch.tensor(BEFORE)) instead of self.NAME = ...; a '
            "later assignment is self.NAME.fill_(...)"
        ),
        example=(
            "class Net(nn.Module):\n"
            "    initialized = False\n"
            "\n"
            "    def forward(self, x):\n"
            "        if not self.initialized:\n"
            "            self.initialized = True\n"
            "        return x"
        ),
    ),
)
def find_mutated_python_state(effects: ForwardEffects) -> Iterator[RuleHit]:
    for change in effects.changed_values:
        yield _build_change_hit(change)


@check_other_subject(
    UsageChanges,
    PYTHON_STATE,
    summary=(
        "`{key}` of {owner} is a plain Python value that changed from {before} to {after} {since}"
    ),
    detail="no checkpoint has it",
)
def find_lost_python_state(usage_changes: UsageChanges) -> Iterator[RuleHit]:
    for change in usage_changes.changed_values:
        yield _build_change_hit(change, since=usage_changes.since)


def _build_change_hit(change: PythonChange, **extra_facts: str) -> RuleHit:
    name = change.path.rpartition(".")[2]
    return hit(
        change.path,
        Level.ERROR if change.is_flag else None,
        owner=change.owner_class,
        before=change.old_text,
        after=change.new_text,
        name=name,
        remedy=format_value_registration(name, change.old_text),
        **extra_facts,
    )


@check(
    Verification,
    Rule(
        code="CK113",
        name="roundtrip-output-mismatch",
        level=Level.ERROR,
        summary="saved and loaded into a new instance, {module} gives different outputs",
        detail="{how}",
        why=(
            "All keys matched, but the model is different: something that forward uses is not in "
            "the state_dict, and the constructor does not recreate it."
        ),
        fix="To list the state that is not in the state_dict: {command}",
        general_command="ckptool audit -m MODULE",
        example=(
            "class Net(nn.Module):\n"
            "    def __init__(self):\n"
            "        super().__init__()\n"
            "        self.perm = torch.randperm(8)\n"
            "\n"
            "    def forward(self, x):\n"
            "        return x[:, self.perm]"
        ),
    ),
)
def find_round_trip_mismatch(verification: Verification) -> Iterator[RuleHit]:
    if verification.round_trip_difference:
        yield _build_round_trip_hit(verification.module, verification.round_trip_difference)


@check_other_subject(ForwardEffects, "CK113")
def find_round_trip_mismatch_after_forward(effects: ForwardEffects) -> Iterator[RuleHit]:
    if effects.round_trip_difference:
        yield _build_round_trip_hit(effects.module, effects.round_trip_difference)


def _build_round_trip_hit(module: str, difference: str) -> RuleHit:
    return hit("", module=module, how=difference, command=format_audit_command(module))


@check(
    Verification,
    Rule(
        code="CK701",
        name="meta-uninitialised-buffer",
        level=Level.WARNING,
        summary="`{key}` is uninitialised when the model is built on the meta device and loaded "
        "with assign=True",
        why=(
            "Large models are built on the meta device and filled from the file. What is not in "
            "the file stays on meta, or is uninitialised after to_empty(), although the "
            "constructor computes it."
        ),
        fix=(
            "If you build on the meta device, set it after loading: {code} (cpu_module: the module "
            "as its constructor builds it on the CPU), or save it as a buffer without "
            "persistent=False. Otherwise ignore CK701."
        ),
        general_advice=(
            "If you build on the meta device, set it after loading: module.NAME = cpu_module.NAME "
            "(cpu_module: the module as its constructor builds it on the CPU), or save it as a "
            "buffer without persistent=False. Otherwise ignore CK701."
        ),
        example=(
            'with torch.device("meta"):\n'
            '    model = Net()  # has register_buffer("inv_freq", ..., persistent=False)\n'
            "model.load_state_dict(state, assign=True)"
        ),
    ),
)
def find_uninitialised_on_meta(verification: Verification) -> Iterator[RuleHit]:
    for path in verification.uninitialized_paths:
        value = format_attribute(path, "cpu_module")
        yield hit(path, code=f"{format_attribute(path, 'module')} = {value}")


@check(
    Verification,
    Rule(
        code="CK702",
        name="assign-unties",
        level=Level.WARNING,
        summary=("`{key}` is tied to {others}, but no longer after load_state_dict(assign=True)"),
        why=(
            "assign=True assigns a new parameter to each name. Tied weights are no longer "
            "shared: they are trained to different values, and take twice the memory on a device."
        ),
        fix="Tie them again after loading: {code}",
        general_advice="Tie them again after loading: model.head.weight = model.embedding.weight",
        example="model.head.weight = model.emb.weight\nmodel.load_state_dict(state, assign=True)",
    ),
)
def find_ties_broken_by_assign(verification: Verification) -> Iterator[RuleHit]:
    for first_name, *other_names in verification.broken_ties:
        yield hit(
            first_name,
            others=", ".join(f"`{name}`" for name in other_names),
            code=format_tie_code(first_name, other_names),
        )


@check_other_subject(
    Verification,
    "CK110",
    summary="`{key}` is on {device}, and {op} needs it on {needed}{at}",
    detail="it is {what}{inside}",
    fix="{remedy}",
)
def find_device_mismatches(verification: Verification) -> Iterator[RuleHit]:
    for mismatch in verification.device_mismatches:
        yield hit(
            mismatch.attribute or "a tensor of forward",
            device=mismatch.devices[0],
            needed=mismatch.devices[1],
            op=mismatch.op,
            at=f" at {mismatch.where}" if mismatch.where else "",
            where=mismatch.where,
            defined_at=mismatch.held_tensor.assigned_at if mismatch.held_tensor else "",
            what=mismatch.description,
            inside=f" (forward of `{mismatch.module}`)" if mismatch.module else "",
            module=mismatch.module,
            remedy=_describe_device_fix(mismatch),
        )


def _describe_device_fix(mismatch: DeviceMismatch) -> str:
    if mismatch.devices[1] == "cpu":
        return "Bring it back with .cpu() first."
    if not mismatch.attribute:
        return "Create it on the device of the input (device=x.device), or move it: .to(x.device)"
    module_tensor = mismatch.held_tensor
    if module_tensor is None:
        name = mismatch.attribute.rsplit(".", 1)[-1].split("[", 1)[0]
        return f"self.register_buffer({quote_python(name)}, ...)"
    if module_tensor.kind is Kind.MODULE:
        path = mismatch.attribute.rpartition(".")[0]
        return format_module_registration(
            path, module_tensor.assigned_to, module_tensor.assigned_at
        )
    return format_registration(module_tensor)
