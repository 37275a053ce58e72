"""Module outputs <-> golden file (safetensors), and its replay -> GoldenReplay."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import msgspec
import torch
from msgspec import Struct
from torch import Tensor

from ckptool import values
from ckptool.errors import CorruptCheckpointError, ModuleError, ReadError, UsageError
from ckptool.model import Skipped, State, natural
from ckptool.verification import cpu, cuda, load, running
from ckptool.verification.facts import Drift, Replay, Status
from ckptool.verification.leaves import comparable, leaves
from ckptool.verification.outputs import compared, difference, plain
from ckptool.verification.passes import Inputs, Pass
from ckptool.verification.sides import Side

FORMAT: Final = 1
KEY: Final = "ckptool-golden"
DEVICES: Final = ("cpu", "cuda")
"""Devices with a tolerance of their own; a simulated device uses the CPU's."""
_ATOMS: Final = (bool, int, float, str, type(None))


class Record(Struct, frozen=True, forbid_unknown_fields=True):
    """JSON metadata of a golden file; its tensors are stored as safetensors entries."""

    format: int
    module: str
    checkpoint: str
    """The file name of the checkpoint whose weights were used."""
    weights: str
    """SHA-256 of the parameters and buffers of the state, "" if one could not be read."""
    torch: str
    tolerances: dict[str, float | None]
    """Device -> absolute and relative tolerance; None is the dtype's default."""
    args: list[Any]
    kwargs: dict[str, Any]
    output: dict[str, Any]
    """Path of a leaf of the output -> {"tensor": NAME} or {"value": ...}."""


@dataclass(frozen=True, slots=True, eq=False)
class Golden:
    """Decoded golden file."""

    path: Path
    record: Record
    inputs: Inputs
    output: Mapping[str, Any]
    """Path of a leaf of the output -> its value."""


def recorded(side: Side, inputs: Inputs, tolerances: Mapping[str, float]) -> bytes:
    """Run the module with the checkpoint's weights; return the golden file's content.

    Raises:
        ModuleError: the checkpoint does not load strictly, forward raises, or two passes differ.
        UsageError: the inputs cannot be stored.
    """
    from safetensors.torch import save

    target = side.maker.target
    one = load.subject(side.maker, side.loading)
    strict = load.strictly(one)
    if strict.status is not Status.PASSED:
        path = side.loading.checkpoint.path
        raise ModuleError(target, f"{path} does not load strictly into it: {strict.reason}")
    first, second = (cpu.run(one.make(), inputs) for _ in range(2))
    for done in (first, second):
        if done.error is not None:
            raise ModuleError(target, f"the forward pass raised {done.error}")
    if not difference(first.output, second.output).exact:
        raise ModuleError(target, "two passes from one seed differ: nothing can be held to them")
    store = _Store({})
    record = Record(
        format=FORMAT,
        module=target,
        checkpoint=side.loading.checkpoint.path.name,
        weights=_weights(side.loading.state),
        torch=str(torch.__version__),
        tolerances={device: tolerances.get(device) for device in DEVICES},
        args=[store.packed(value, f"args.{n}") for n, value in enumerate(inputs.args)],
        kwargs={name: store.packed(v, f"kwargs.{name}") for name, v in inputs.kwargs.items()},
        output=dict(_packed_output(first.output, store)),
    )
    if not record.output:
        raise ModuleError(target, "its output has nothing that can be compared")
    text = json.dumps(msgspec.to_builtins(record))
    return save(store.tensors, metadata={KEY: text})


def tolerances_of(words: Mapping[str, float]) -> Mapping[str, float]:
    """Return `tolerances` unchanged after checking the device names.

    Raises:
        UsageError: a device is not in DEVICES.
    """
    for device in words:
        if device not in DEVICES:
            raise UsageError(f"--tolerance {device}=...: expected {' or '.join(DEVICES)}")
    return words


def read(path: Path) -> Golden:
    """Read a golden file.

    Raises:
        ReadError: it cannot be read, or is not a golden file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise ReadError(path, error.strerror or str(error)) from error
    except SafetensorError as error:
        raise CorruptCheckpointError(path, f"is no golden file: {error}") from error
    if text is None:
        raise CorruptCheckpointError(
            path, "is no golden file: write one with `ckptool lock --golden FILE`"
        )
    try:
        record = msgspec.convert(json.loads(text), Record)
        if record.format != FORMAT:
            raise ValueError(f"format {record.format}, and this version reads {FORMAT}")  # noqa: TRY301
        args = tuple(_unpacked(value, tensors) for value in record.args)
        kwargs = {name: _unpacked(value, tensors) for name, value in record.kwargs.items()}
        output = {name: _unpacked(value, tensors) for name, value in record.output.items()}
    except (ValueError, RecursionError) as error:
        raise CorruptCheckpointError(path, f"its record makes no sense: {error}") from error
    return Golden(path, record, Inputs(args, kwargs, str(path)), output)


def replay(side: Side, golden: Golden, device: str = "auto") -> Replay:
    """Run the module on the recorded inputs, and compare its outputs with the recorded ones.

    Raises:
        ModuleError: the module cannot be built.
        ReadError: tensors of the checkpoint cannot be read.
        UsageError: the device does not exist.
    """
    where = running.choose(device)
    path = str(side.loading.checkpoint.path)
    whole = Replay(path, side.maker.target, str(golden.path))
    one = load.subject(side.maker, side.loading)
    strict = load.strictly(one)
    if strict.status is not Status.PASSED:
        return _left(whole, f"it does not load strictly: {strict.reason}")
    passes = [cpu.run(one.make(), golden.inputs)]
    skipped: tuple[Skipped, ...] = ()
    if where.kind == "cuda":
        passes.append(cuda.run(one.make(), golden.inputs, where.device))
    elif device == "auto":
        skipped = (Skipped(f"{golden.path} on CUDA", "there is no CUDA device here"),)
    drifts, passed = [], []
    for done in passes:
        kind = done.device.partition(":")[0]
        how, words = _apart(done, golden, golden.record.tolerances.get(kind))
        if how:
            drifts.append(Drift(done.device, how, _tolerance(golden, kind)))
        else:
            passed.append(f"{done.device}: {words}")
    return Replay(
        path, whole.module, whole.golden, tuple(drifts), tuple(passed),
        _circumstances(side, golden), skipped,
    )  # fmt: skip


def _left(whole: Replay, reason: str) -> Replay:
    return msgspec.structs.replace(
        whole, skipped=(Skipped(f"{whole.golden} with {whole.path}", reason),)
    )


def _apart(done: Pass, golden: Golden, tolerance: float | None) -> tuple[str, str]:
    """Return the difference from the recorded output, "" if none, and the largest difference."""
    if done.error is not None:
        return f"forward raised {done.error}", ""
    here = {path: leaf for path, leaf in leaves(done.output) if _stored(leaf)}
    found = compared(here, golden.output, tolerance)
    return ("" if found.close else f"{found.first}, {found.words}"), found.words


def _tolerance(golden: Golden, kind: str) -> str:
    found = golden.record.tolerances.get(kind)
    return "of the dtype" if found is None else f"{found:g}"


def _circumstances(side: Side, golden: Golden) -> tuple[str, ...]:
    now, then = str(torch.__version__), golden.record.torch
    version = f"torch {then} then, {now} now" if now != then else f"torch {now}, as then"
    before, weights = golden.record.weights, _weights(side.loading.state)
    if not before or not weights:
        return (version,)
    return (version, "the same weights" if weights == before else "other weights or buffers")


def _weights(state: State) -> str:
    """Return the SHA-256 of all tensors of a state as hex, "" if one cannot be read."""
    whole = sha256()
    for key in sorted(state.tensors, key=natural):
        content = values.fingerprint(state.tensors[key])
        if content is None:
            return ""
        whole.update(f"{len(key)}:{key}{content}".encode(errors="surrogatepass"))
    return whole.hexdigest()


def _packed_output(output: Any, store: "_Store") -> "list[tuple[str, Any]]":
    found = [(path, leaf) for path, leaf in leaves(output) if _stored(leaf)]
    return [(path, store.packed(leaf, f"output.{n}")) for n, (path, leaf) in enumerate(found)]


def _stored(leaf: object) -> bool:
    return isinstance(leaf, Tensor) or (comparable(leaf) and isinstance(leaf, _ATOMS))


@dataclass(frozen=True, slots=True)
class _Store:
    """Tensors to write to a golden file, by name."""

    tensors: dict[str, Tensor]

    def packed(self, value: Any, name: str) -> Any:
        """Return `value` as JSON data; add its tensors to `tensors` under names from `name`.

        Raises:
            UsageError: it holds a type that cannot be stored.
        """
        if isinstance(value, Tensor):
            self.tensors[name] = plain(value).contiguous().clone()
            return {"tensor": name}
        if isinstance(value, _ATOMS):
            return {"value": value}
        if type(value) in {list, tuple}:
            inside = [self.packed(child, f"{name}.{n}") for n, child in enumerate(value)]
            return {type(value).__name__: inside}
        if type(value) is dict and all(isinstance(key, str) for key in value):
            return {"dict": {k: self.packed(child, f"{name}.{k}") for k, child in value.items()}}
        raise UsageError(
            f"the input `{name}` holds a {type(value).__name__}: a golden file holds tensors, "
            "numbers, texts, and lists, tuples and dicts of them"
        )


def _unpacked(packed: Any, tensors: Mapping[str, Tensor]) -> Any:
    match packed:
        case {"tensor": str() as name} if name in tensors:
            return tensors[name]
        case {"value": bool() | int() | float() | str() | None as value}:
            return value
        case {"list": list() as inside}:
            return [_unpacked(child, tensors) for child in inside]
        case {"tuple": list() as inside}:
            return tuple(_unpacked(child, tensors) for child in inside)
        case {"dict": dict() as inside}:
            return {key: _unpacked(child, tensors) for key, child in inside.items()}
        case _:
            raise ValueError(f"{json.dumps(packed)[:60]} is no value")
