"""One operation of a plan -> statements that do it to `state`, a dict of tensors by key."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from ckptool.errors import PlanError
from ckptool.migration.hook.code_layout import (
    INDENT,
    assign_string,
    indent_lines,
    lay_out,
    lay_out_comprehension,
    lay_out_keys,
    lay_out_table,
)
from ckptool.migration.hook.hook_trace import (
    MAX_INLINE_NUMEL,
    HookTrace,
    InlineValue,
    TracedStep,
)
from ckptool.migration.plan.key_operations import (
    AddPrefix,
    DropKeys,
    ExtractState,
    InjectTensor,
    RenameKeys,
    StripPrefix,
)
from ckptool.migration.plan.reparametrization_operations import (
    AddWeightNorm,
    RemoveSpectralNorm,
    RemoveWeightNorm,
)
from ckptool.migration.plan.tensor_operations import (
    BakeMask,
    CastTensors,
    CompactViews,
    ConcatTensors,
    ReshapeTensor,
    SplitTensor,
    TieTensors,
    TransposeTensor,
    UntieTensor,
)
from ckptool.phrases import quote_python

if TYPE_CHECKING:
    from torch import Tensor

_DEPTH: Final = 1
"""Levels of indentation of the statements: they are the body of a function."""


@dataclass(slots=True)
class StepCode:
    """Statements of a plan, and the constants and imports that they need."""

    constants: list[list[str]] = field(default_factory=list)
    """Each a statement of the module, as lines."""
    body: list[str] = field(default_factory=list)
    imports: set[str] = field(default_factory=set)
    """"re" and "fnmatch", where they are used."""

    def add_constant(self, name: str, lay_out_value: Callable[[str], list[str]]) -> str:
        """Add a constant under `name`, with a number if that is taken; return its name."""
        count = sum(lines[0].startswith(name) for lines in self.constants)
        new_name = f"{name}_{count + 1}" if count else name
        self.constants.append(lay_out_value(new_name))
        return new_name


def write_steps(trace: HookTrace) -> StepCode:
    """Return the statements of all steps.

    Raises:
        PlanError: a hook cannot do a step; the message names it.
    """
    code = StepCode()
    for group in _group_steps(trace.steps):
        statements = [*_write_group(group, trace, code)]
        if code.body and statements:
            code.body.append("")
        code.body += statements
    if not trace.is_recognizable and not trace.has_versions and _changes_values(trace):
        raise PlanError(
            "no hook is written: the plan changes values and neither keys nor shapes, and the file "
            "has no versions of its modules, so an old file cannot be distinguished from a new one"
        )
    return code


def _changes_values(trace: HookTrace) -> bool:
    harmless = CastTensors | TieTensors | UntieTensor | CompactViews
    return any(not isinstance(step.op, harmless) for step in trace.steps)


def _group_steps(steps: Sequence[TracedStep]) -> Iterator[list[TracedStep]]:
    """Yield runs of steps that one statement does: several injections, several drops."""
    group: list[TracedStep] = []
    for step in steps:
        if group and not _is_same_statement(group[0], step):
            yield group
            group = []
        group.append(step)
    if group:
        yield group


def _is_same_statement(first: TracedStep, step: TracedStep) -> bool:
    match first.op, step.op:
        case InjectTensor(source=source), InjectTensor(source=other):
            return source == other == "constructor"
        case DropKeys(), DropKeys():
            return {first.op.key, step.op.key} <= {*first.keys}
        case _:
            return False


def _write_group(group: list[TracedStep], trace: HookTrace, code: StepCode) -> Iterator[str]:
    """Yield the lines of the function for steps that are one loop or one statement.

    The keys are those of `state`, the dict that the hook is given.
    """
    step = group[0]
    match step.op:
        case InjectTensor(source="constructor"):
            yield from _write_own_values(group, code)
        case InjectTensor() as op:
            yield from _write_injection(step, op, trace)
        case RenameKeys() as op:
            yield from _write_rename(step, op, code)
        case DropKeys():
            yield from _write_drops(group, code)
        case StripPrefix() as op:
            yield from _write_strip(op)
        case AddPrefix(prefix=prefix):
            parts = [f"{quote_python(prefix)} + key: state.pop(key)", "for key in list(state)"]
            yield from _write_moves(parts)
        case ExtractState() as op:
            yield from _write_extraction(step, op)
        case CastTensors() as op:
            yield from _write_cast(step, op, code)
        case CompactViews(keys=pattern):
            yield from _write_loop(step, pattern, "state[key] = state[key].clone()", code)
        case _ as op:
            yield from _write_tensor_step(op)


_TensorOperation = (
    ReshapeTensor | TransposeTensor | SplitTensor | ConcatTensors | TieTensors | UntieTensor
    | BakeMask | RemoveWeightNorm | AddWeightNorm | RemoveSpectralNorm
)  # fmt: skip


def _write_tensor_step(op: _TensorOperation) -> Iterator[str]:  # noqa: C901 - a case each
    """Yield the lines of a step that makes tensors of tensors, whose keys the plan names."""
    match op:
        case ReshapeTensor(key=key, shape=shape):
            yield from _write_change(key, f".reshape({_format_shape(shape)})")
        case TransposeTensor(key=key, dims=(first, second)):
            yield from _write_change(key, f".transpose({first}, {second})")
        case SplitTensor() as op:
            yield from _write_split(op)
        case ConcatTensors() as op:
            yield from _write_concat(op)
        case TieTensors(key=key, to=to):
            yield from _name_keys(key=key, other=to)
            yield "if other in state:"
            yield "    state[key] = state[other]"
        case UntieTensor(key=key):
            yield from _write_change(key, ".clone()")
        case BakeMask(key=key, original=original, mask=mask):
            yield from _name_keys(key=key, original=original, mask=mask)
            yield "if original in state and mask in state:"
            yield "    state[key] = state.pop(mask) * state.pop(original)"
        case RemoveWeightNorm(key=key, g=g, v=v, dim=dim):
            yield from _name_keys(key=key, g=g, v=v)
            yield "if g in state and v in state:"
            yield "    direction = state.pop(v).contiguous()"
            yield f"    state[key] = torch._weight_norm(direction, state.pop(g), {dim})"
        case AddWeightNorm(key=key, g=g, v=v, dim=dim):
            yield from _name_keys(key=key, g=g, v=v)
            yield "if key in state:"
            yield "    weight = state.pop(key)"
            yield f"    state[g] = torch.norm_except_dim(weight, 2, {dim})"
            yield "    state[v] = weight"
        case RemoveSpectralNorm() as op:
            yield from _write_spectral_norm(op)


def _name_keys(**keys: str) -> Iterator[str]:
    """Yield the assignment of each key to a variable."""
    for name, key in keys.items():
        yield from assign_string(name, key, depth=_DEPTH)


def _write_moves(parts: list[str]) -> Iterator[str]:
    """Yield the statements that rename keys all at once, by the parts of a dict comprehension."""
    yield from lay_out_comprehension("moved = {", parts, "}", depth=_DEPTH)
    yield "state.update(moved)"


def _write_own_values(group: list[TracedStep], code: StepCode) -> Iterator[str]:
    keys = list(dict.fromkeys(s.op.key for s in group if isinstance(s.op, InjectTensor)))
    name = code.add_constant("ADDED_KEYS", lambda name: lay_out_keys(name, keys))
    yield f"for key in {name}:"
    yield "    if key in own:  # as the constructor made it"
    yield "        state.setdefault(key, own[key])"


def _write_injection(step: TracedStep, op: InjectTensor, trace: HookTrace) -> Iterator[str]:
    name = f"inject `{op.key}` from {op.source}"
    if op.source.partition(":")[0] == "attribute":
        reason = "its value is an attribute of a pickled module, which a state_dict does not have"
        raise _build_refusal(step, name, reason)
    value = trace.values.get(op.key)
    if value is None:
        reason = f"the value has more than {MAX_INLINE_NUMEL} elements, too many for code"
        raise _build_refusal(step, name, reason)
    yield from _name_keys(key=op.key)
    yield "if key not in state:"
    head, items, tail = _format_tensor(value)
    yield from indent_lines(lay_out(f"state[key] = {head}", items, tail, depth=_DEPTH + 1))


def _write_rename(step: TracedStep, op: RenameKeys, code: StepCode) -> Iterator[str]:
    """Yield the lines of a rename: a prefix, a regular expression, or the table of its keys."""
    if op.how == "prefix" and not op.keys:
        yield from _name_keys(old=op.key, new=op.to)
        yield from _write_moves(
            [
                "new + key.removeprefix(old): state.pop(key)",
                "for key in list(state)",
                "if key.startswith(old)",
            ]
        )
        return
    if op.how == "regex" and not op.numbers:
        code.imports.add("re")
        yield from _name_keys(pattern=op.key, template=op.to)
        yield from _write_moves(
            [
                "re.sub(pattern, template, key): state.pop(key)",
                "for key in list(state)",
                "if re.search(pattern, key)",
            ]
        )
        return
    pairs = {key: op.rename_key(key) for key in step.keys}
    table = {key: new for key, new in pairs.items() if new and new != key}
    if len(table) == 1:
        ((old, new),) = table.items()
        yield from _name_keys(old=old, new=new)
        yield "if old in state:"
        yield "    state[new] = state.pop(old)"
        return
    name = code.add_constant("RENAMED_KEYS", lambda name: lay_out_table(name, table))
    parts = ["new: state.pop(old)", f"for old, new in {name}.items()", "if old in state"]
    yield from _write_moves(parts)


def _write_drops(group: list[TracedStep], code: StepCode) -> Iterator[str]:
    keys = [s.op.key for s in group if isinstance(s.op, DropKeys)]
    if not {*keys} <= {*group[0].keys}:
        yield from _write_loop(group[0], keys[0], "del state[key]", code)
        return
    name = code.add_constant("DROPPED_KEYS", lambda name: lay_out_keys(name, keys))
    yield f"for key in {name}:"
    yield "    state.pop(key, None)"


def _write_strip(op: StripPrefix) -> Iterator[str]:
    if op.anywhere:
        yield from _name_keys(removed=op.prefix.removesuffix("."))
        yield "for key in list(state):"
        yield '    *owners, name = key.split(".")'
        yield "    kept = [owner for owner in owners if owner != removed]"
        yield '    state[".".join([*kept, name])] = state.pop(key)'
        return
    yield from _name_keys(prefix=op.prefix)
    yield "for key in list(state):"
    yield "    stripped = key"
    yield (
        f"    for _ in range({op.times}):" if op.times else "    while stripped.startswith(prefix):"
    )
    yield "        stripped = stripped.removeprefix(prefix)"
    yield "    state[stripped] = state.pop(key)"


def _write_extraction(step: TracedStep, op: ExtractState) -> Iterator[str]:
    if op.at:
        reason = "load_state_dict() gets what its caller took out of the file"
        raise _build_refusal(step, f"extract `{op.at}`", reason)
    yield from _name_keys(prefix=op.prefix)
    yield "for key in list(state):"
    yield "    if not key.startswith(prefix):"
    yield "        del state[key]"
    yield from list(_write_strip(StripPrefix(prefix=op.prefix)))[1:]


def _write_cast(step: TracedStep, op: CastTensors, code: StepCode) -> Iterator[str]:
    conditions = ["isinstance(value, Tensor) and value.is_floating_point()"]
    if op.keys != "*":
        conditions.append(_match_key(step, op.keys, code))
    for pattern in op.keep:
        code.imports.add("fnmatch")
        conditions.append(f"not fnmatchcase(key, {quote_python(pattern)})")
    yield "for key, value in state.items():"
    for depth, condition in enumerate(conditions, 1):
        yield f"{INDENT * depth}if {condition}:"
    yield f"{INDENT * (len(conditions) + 1)}state[key] = value.to(torch.{op.dtype})"


def _write_split(op: SplitTensor) -> Iterator[str]:
    yield from _name_keys(key=op.key)
    names = [quote_python(name) for name in op.into]
    yield from lay_out("names = (", names, ")", depth=_DEPTH, comma=True)
    yield "if key in state:"
    if op.sizes:
        yield f"    pieces = state.pop(key).split({[*op.sizes]}, {op.dim})"
    else:
        yield f"    pieces = state.pop(key).chunk({len(op.into)}, {op.dim})"
    yield "    state.update(zip(names, pieces, strict=True))"


def _write_concat(op: ConcatTensors) -> Iterator[str]:
    yield from _name_keys(key=op.into)
    names = [quote_python(key) for key in op.keys]
    yield from lay_out("names = (", names, ")", depth=_DEPTH, comma=True)
    yield "if all(name in state for name in names):"
    yield f"    state[key] = torch.cat([state.pop(name) for name in names], {op.dim})"


def _write_spectral_norm(op: RemoveSpectralNorm) -> Iterator[str]:
    yield from _name_keys(key=op.key, original=op.original, u=op.u, v=op.v)
    yield "if original in state and u in state and v in state:"
    yield "    weight = state.pop(original)"
    matrix = "weight"
    if op.dim:
        yield f"    others = [n for n in range(weight.dim()) if n != {op.dim}]"
        matrix = f"weight.permute({op.dim}, *others)"
    yield f"    matrix = {matrix}.reshape(weight.size({op.dim}), -1)"
    yield "    sigma = torch.dot(state.pop(u), torch.mv(matrix, state.pop(v)))"
    yield "    state[key] = weight / sigma"


def _write_change(key: str, change: str) -> Iterator[str]:
    yield from _name_keys(key=key)
    yield "if key in state:"
    yield f"    state[key] = state[key]{change}"


def _write_loop(step: TracedStep, pattern: str, statement: str, code: StepCode) -> Iterator[str]:
    yield "for key in list(state):"
    yield f"    if {_match_key(step, pattern, code)}:"
    yield f"        {statement}"


def _match_key(step: TracedStep, pattern: str, code: StepCode) -> str:
    """Return the condition that `key` is the exact key of the file, else matches the glob."""
    if pattern in step.keys:
        return f"key == {quote_python(pattern)}"
    code.imports.add("fnmatch")
    return f"fnmatchcase(key, {quote_python(pattern)})"


def _format_tensor(value: InlineValue) -> tuple[str, list[str], str]:
    """Return the call that makes the value: head, arguments and tail."""
    tensor = _build_tensor(value)
    dtype = f"dtype=torch.{value.dtype}"
    shape = _format_shape(value.shape)
    is_zero = not any(value.content)
    if is_zero or not tensor.numel():
        return "torch.zeros(", [shape, dtype], ")"
    numbers = tensor.flatten().tolist()
    if len({*map(repr, numbers)}) == 1 and value.shape:
        return "torch.full(", [shape, _format_number(numbers[0]), dtype], ")"
    return "torch.tensor(", [_format_nested(tensor.tolist()), dtype], ")"


def _build_tensor(value: InlineValue) -> "Tensor":
    import torch

    dtype = getattr(torch, value.dtype)
    if not value.content:
        return torch.zeros(value.shape, dtype=dtype)
    tensor = torch.frombuffer(bytearray(value.content), dtype=dtype).reshape(value.shape)
    return tensor.float() if value.dtype.startswith("float8") else tensor


def _format_nested(value: object) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_format_nested, value))}]"
    return _format_number(value)


def _format_number(value: object) -> str:
    text = repr(value)
    return f'float("{text}")' if text.lstrip("-") in {"inf", "nan"} else text


def _format_shape(shape: Sequence[int]) -> str:
    return repr(tuple(shape))


def _build_refusal(step: TracedStep, name: str, reason: str) -> PlanError:
    return PlanError(f"no hook is written: it cannot do step {step.number}, {name}: {reason}")
