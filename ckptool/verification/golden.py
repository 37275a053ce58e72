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

from ckptool.errors import (
    CorruptCheckpointError,
    ModuleError,
    ReadError,
    UsageError,
    describe_os_error,
)
from ckptool.model import Skipped, StateDict, natural_sort_key
from ckptool.values.fingerprint_many import fingerprint_tensor
from ckptool.verification.backends import cpu, cuda
from ckptool.verification.forward_pass import ForwardPass, Inputs
from ckptool.verification.levels import device_and_forward, load
from ckptool.verification.output_diff import compare_leaves, compare_outputs, to_dense_cpu
from ckptool.verification.pytree import is_comparable, iter_leaves
from ckptool.verification.result import GoldenReplay, LevelStatus, OutputDrift
from ckptool.verification.target import VerificationTarget

FORMAT: Final = 1
KEY: Final = "ckptool-golden"
DEVICES: Final = ("cpu", "cuda")
"""Devices with a tolerance of their own; a simulated device uses the CPU's."""
_ATOMS: Final = (bool, int, float, str, type(None))


class GoldenRecord(Struct, frozen=True, forbid_unknown_fields=True):
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
class GoldenFile:
    """Decoded golden file."""

    path: Path
    record: GoldenRecord
    inputs: Inputs
    output: Mapping[str, Any]
    """Path of a leaf of the output -> its value."""


def record_golden(
    verification_target: VerificationTarget, inputs: Inputs, tolerances: Mapping[str, float]
) -> bytes:
    """Run the module with the checkpoint's weights; return the golden file's content.

    Raises:
        ModuleError: the checkpoint does not load strictly, forward raises, or two passes differ.
        UsageError: the inputs cannot be stored.
    """
    from safetensors.torch import save

    target = verification_target.factory.target
    loaded_factory = load.load_module_factory(
        verification_target.factory, verification_target.module_diff
    )
    load_result = load.check_strict_load(loaded_factory)
    if load_result.status is not LevelStatus.PASSED:
        path = verification_target.module_diff.checkpoint.path
        raise ModuleError(target, f"{path} does not load strictly into it: {load_result.reason}")
    first, second = (cpu.run_on_cpu(loaded_factory.create_module(), inputs) for _ in range(2))
    for forward_pass in (first, second):
        if forward_pass.error is not None:
            raise ModuleError(target, f"the forward pass raised {forward_pass.error}")
    if not compare_outputs(first.output, second.output).is_exact:
        raise ModuleError(
            target, "two passes with the same seed differ: there is nothing stable to compare with"
        )
    store = _TensorStore({})
    record = GoldenRecord(
        format=FORMAT,
        module=target,
        checkpoint=verification_target.module_diff.checkpoint.path.name,
        weights=_compute_weights_digest(verification_target.module_diff.state),
        torch=str(torch.__version__),
        tolerances={device: tolerances.get(device) for device in DEVICES},
        args=[store.pack_value(value, f"args.{index}") for index, value in enumerate(inputs.args)],
        kwargs={
            name: store.pack_value(value, f"kwargs.{name}") for name, value in inputs.kwargs.items()
        },
        output=dict(_pack_output(first.output, store)),
    )
    if not record.output:
        raise ModuleError(target, "its output contains nothing that can be compared")
    text = json.dumps(msgspec.to_builtins(record))
    return save(store.tensors, metadata={KEY: text})


def check_tolerances(tolerances: Mapping[str, float]) -> Mapping[str, float]:
    """Return `tolerances` unchanged after checking the device names.

    Raises:
        UsageError: a device is not in DEVICES.
    """
    for device in tolerances:
        if device not in DEVICES:
            raise UsageError(f"--device-tolerance {device}=...: expected {' or '.join(DEVICES)}")
    return tolerances


def read_golden(path: Path) -> GoldenFile:
    """Read a golden file.

    Raises:
        ReadError: it cannot be read, or is not a golden file.
    """
    from safetensors import SafetensorError, safe_open

    if path.exists() and not path.is_file():
        raise ReadError(path, "is not a regular file")
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise ReadError(path, describe_os_error(error)) from error
    except SafetensorError as error:
        raise CorruptCheckpointError(path, f"is not a golden file: {error}") from error
    if text is None:
        raise CorruptCheckpointError(
            path, "is not a golden file: write one with `ckptool lock --golden FILE`"
        )
    try:
        record = msgspec.convert(json.loads(text), GoldenRecord)
        if record.format != FORMAT:
            reason = f"format {record.format}, but this version reads {FORMAT}"
            raise ValueError(reason)  # noqa: TRY301
        args = tuple(_unpack_value(value, tensors) for value in record.args)
        kwargs = {name: _unpack_value(value, tensors) for name, value in record.kwargs.items()}
        output = {name: _unpack_value(value, tensors) for name, value in record.output.items()}
    except (ValueError, RecursionError) as error:
        raise CorruptCheckpointError(path, f"its record is invalid: {error}") from error
    return GoldenFile(path, record, Inputs(args, kwargs, str(path)), output)


def replay_golden(
    verification_target: VerificationTarget, golden: GoldenFile, device: str = "auto"
) -> GoldenReplay:
    """Run the module on the recorded inputs, and compare its outputs with the recorded ones.

    Raises:
        ModuleError: the module cannot be built.
        ReadError: tensors of the checkpoint cannot be read.
        UsageError: the device does not exist.
    """
    selected_device = device_and_forward.select_device(device)
    path = str(verification_target.module_diff.checkpoint.path)
    empty_replay = GoldenReplay(path, verification_target.factory.target, str(golden.path))
    loaded_factory = load.load_module_factory(
        verification_target.factory, verification_target.module_diff
    )
    load_result = load.check_strict_load(loaded_factory)
    if load_result.status is not LevelStatus.PASSED:
        return _skip_replay(empty_replay, f"it does not load strictly: {load_result.reason}")
    passes = [cpu.run_on_cpu(loaded_factory.create_module(), golden.inputs)]
    skipped: tuple[Skipped, ...] = ()
    if selected_device.kind == "cuda":
        passes.append(
            cuda.run_on_cuda(loaded_factory.create_module(), golden.inputs, selected_device.device)
        )
    elif device == "auto":
        skipped = (Skipped(f"{golden.path} on CUDA", "no CUDA device is available"),)
    output_drifts, matching_devices = [], []
    for forward_pass in passes:
        device_type = forward_pass.device.partition(":")[0]
        description, largest_difference = _difference_from_golden(
            forward_pass, golden, golden.record.tolerances.get(device_type)
        )
        if description:
            output_drifts.append(
                OutputDrift(
                    forward_pass.device, description, _format_tolerance(golden, device_type)
                )
            )
        else:
            matching_devices.append(f"{forward_pass.device}: {largest_difference}")
    return GoldenReplay(
        path,
        empty_replay.module,
        empty_replay.golden,
        tuple(output_drifts),
        tuple(matching_devices),
        _describe_environment(verification_target, golden),
        skipped,
    )


def _skip_replay(empty_replay: GoldenReplay, reason: str) -> GoldenReplay:
    return msgspec.structs.replace(
        empty_replay, skipped=(Skipped(f"{empty_replay.golden} with {empty_replay.path}", reason),)
    )


def _difference_from_golden(
    forward_pass: ForwardPass, golden: GoldenFile, tolerance: float | None
) -> tuple[str, str]:
    """Return the difference from the recorded output, "" if none, and the largest difference."""
    if forward_pass.error is not None:
        return f"forward raised {forward_pass.error}", ""
    output_leaves = {
        path: leaf for path, leaf in iter_leaves(forward_pass.output) if _is_storable(leaf)
    }
    output_difference = compare_leaves(output_leaves, golden.output, tolerance)
    return (
        ""
        if output_difference.is_close
        else f"{output_difference.first_difference}, {output_difference.summary}"
    ), output_difference.summary


def _format_tolerance(golden: GoldenFile, device_type: str) -> str:
    tolerance = golden.record.tolerances.get(device_type)
    return "of the dtype" if tolerance is None else f"{tolerance:g}"


def _describe_environment(
    verification_target: VerificationTarget, golden: GoldenFile
) -> tuple[str, ...]:
    current_version, recorded_version = str(torch.__version__), golden.record.torch
    version = (
        f"recorded with torch {recorded_version}, now {current_version}"
        if current_version != recorded_version
        else f"torch {current_version}, as when recorded"
    )
    recorded_weights, current_weights = (
        golden.record.weights,
        _compute_weights_digest(verification_target.module_diff.state),
    )
    if not recorded_weights or not current_weights:
        return (version,)
    return (
        version,
        "the same weights"
        if current_weights == recorded_weights
        else "different weights or buffers",
    )


def _compute_weights_digest(state: StateDict) -> str:
    """Return the SHA-256 of all tensors of a state as hex, "" if one cannot be read."""
    digest = sha256()
    for key in sorted(state.tensors, key=natural_sort_key):
        fingerprint = fingerprint_tensor(state.tensors[key])
        if fingerprint is None:
            return ""
        digest.update(f"{len(key)}:{key}{fingerprint}".encode(errors="surrogatepass"))
    return digest.hexdigest()


def _pack_output(output: Any, store: "_TensorStore") -> "list[tuple[str, Any]]":
    output_leaves = [(path, leaf) for path, leaf in iter_leaves(output) if _is_storable(leaf)]
    return [
        (path, store.pack_value(leaf, f"output.{index}"))
        for index, (path, leaf) in enumerate(output_leaves)
    ]


def _is_storable(leaf: object) -> bool:
    return isinstance(leaf, Tensor) or (is_comparable(leaf) and isinstance(leaf, _ATOMS))


@dataclass(frozen=True, slots=True)
class _TensorStore:
    """Tensors to write to a golden file, by name."""

    tensors: dict[str, Tensor]

    def pack_value(self, value: Any, name: str) -> Any:
        """Return `value` as JSON data; add its tensors to `tensors` under names from `name`.

        Raises:
            UsageError: it holds a type that cannot be stored.
        """
        if isinstance(value, Tensor):
            self.tensors[name] = to_dense_cpu(value).contiguous().clone()
            return {"tensor": name}
        if isinstance(value, _ATOMS):
            return {"value": value}
        if type(value) in {list, tuple}:
            children = [
                self.pack_value(child, f"{name}.{index}") for index, child in enumerate(value)
            ]
            return {type(value).__name__: children}
        if type(value) is dict and all(isinstance(key, str) for key in value):
            return {
                "dict": {
                    child_key: self.pack_value(child, f"{name}.{child_key}")
                    for child_key, child in value.items()
                }
            }
        raise UsageError(
            f"the input `{name}` contains a {type(value).__name__}: a golden file stores tensors, "
            "numbers, strings, and lists, tuples and dicts of them"
        )


def _unpack_value(packed_value: Any, tensors: Mapping[str, Tensor]) -> Any:
    match packed_value:
        case {"tensor": str() as name} if name in tensors:
            return tensors[name]
        case {"value": bool() | int() | float() | str() | None as value}:
            return value
        case {"list": list() as children}:
            return [_unpack_value(child, tensors) for child in children]
        case {"tuple": list() as children}:
            return tuple(_unpack_value(child, tensors) for child in children)
        case {"dict": dict() as children}:
            return {key: _unpack_value(child, tensors) for key, child in children.items()}
        case _:
            raise ValueError(f"{json.dumps(packed_value)[:60]} is not a value")
