"""Source of an injected value (`file:PATH#KEY`, `constructor` ...) -> TensorInfo."""

import json
import struct
from collections.abc import Iterator, Mapping
from math import prod
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from ckptool.errors import PlanError
from ckptool.formats.limits import Limits
from ckptool.loaders.folder_weights import open_weights
from ckptool.locations import Location, mask_credentials, parse_location
from ckptool.migration.plan.anonymous_file import AnonymousFile
from ckptool.migration.plan.draft import Draft
from ckptool.migration.plan.key_operations import InjectTensor
from ckptool.migration.plan.npz import read_array
from ckptool.migration.plan.torch_arithmetic import TensorFunction, compute_from_file
from ckptool.migration.source_guard import SourceGuard
from ckptool.model import DTYPE_BITS, STRUCT_CODES, Checkpoint, Constancy, TensorInfo
from ckptool.phrases import MAX_NAMED, join_limited
from ckptool.values.elements import unreadable_reason
from ckptool.values.torch_bytes import copy_tensor_bytes

if TYPE_CHECKING:
    from torch import Tensor

    from ckptool.migration.plan.target_module import TargetModule

SOURCE_FORMS: Final = (
    "attribute", "attribute:PATH", "constructor", "file:PATH#KEY", "npz:PATH#KEY",
    "literal:VALUE", "seed:N", "zeros",
)  # fmt: skip
"""Syntax of a source."""


class ValueSources:
    """Resolves the sources of injected values; opens each file once and caches results."""

    def __init__(
        self,
        target_module: "TargetModule | None",
        donor: Location | None,
        anonymous_file: AnonymousFile,
        source_guard: SourceGuard,
        limits: Limits,
        *,
        follows_chain: bool = False,
    ) -> None:
        self._target_module = target_module
        self._follows_chain = follows_chain
        self._donor = donor
        self._anonymous_file = anonymous_file
        self._limits = limits
        self._checkpoints: dict[Location, Checkpoint] = {}
        self._values: dict[InjectTensor, TensorInfo] = {}
        self._computed_tensors: dict[object, TensorInfo] = {}
        self.rounding_differences: dict[str, float] = {}
        """Step whose result equals torch's up to rounding only -> largest absolute difference."""
        self._source_guard = source_guard

    @property
    def expected(self) -> Mapping[str, TensorInfo] | None:
        """State_dict tensors of the module by key; None without a module.

        None as well for the steps of a chain of migrations: keys and shapes between its revisions
        are those of earlier code, and are compared with what each revision records.
        """
        if self._target_module is None or self._follows_chain:
            return None
        return {
            key: module_tensor.tensor
            for key, module_tensor in self._target_module.module_info.saved_tensors.items()
        }

    def locate_value(self, op: InjectTensor, draft: Draft) -> TensorInfo:
        """Return the description of the tensor that `op` injects, with dtype and shape checked.

        Raises:
            PlanError: the source has no such value, or none that is reproducible.
        """
        if op not in self._values:
            tensor = self._resolve_source(op, draft)
            _check_value(op, tensor, (self.expected or {}).get(op.key))
            self._values[op] = tensor
        return self._values[op]

    def require_donor(self) -> None:
        """Check that the file of `--from` can be read, whether or not a value of it is needed.

        Raises:
            ReadError: it cannot be read.
        """
        if self._donor is not None:
            self._open_file(self._donor)

    def find_attribute(self, path: str, draft: Draft) -> TensorInfo | None:
        """Return attribute `path` of the pickled module of the source or of `--from`, or None."""
        donors = self._open_file(self._donor).states if self._donor is not None else ()
        candidates = (
            draft.state.find_unsaved(path),
            *(state.find_unsaved(path) for state in donors),
            *(state.tensors.get(path) for state in donors),
        )
        return next((tensor for tensor in candidates if tensor is not None), None)

    def compute_tensor(
        self,
        step: str,
        key: str,
        function: TensorFunction,
        tensors: tuple[TensorInfo, ...],
        dim: int = 0,
    ) -> TensorInfo:
        """Return the description of what `function` makes of the tensors, computed once.

        The same elements under two names give one result, so that tied tensors stay tied.

        Raises:
            PlanError: a tensor cannot be read, or torch cannot compute it.
        """
        identity = (function, dim, tuple(replace(tensor, key="") for tensor in tensors))
        if identity not in self._computed_tensors:
            for tensor in tensors:
                if reason := unreadable_reason(tensor):
                    raise PlanError(f"{step}: `{tensor.key}` cannot be read: {reason}")
            try:
                value, rounding = compute_from_file(function, tensors, dim)
            except PlanError as error:
                raise PlanError(f"{step}: {error}") from error
            self._computed_tensors[identity] = self._store_tensor(key, value)
            if rounding:
                self.rounding_differences[step] = rounding
        return self._computed_tensors[identity]

    def _store_tensor(self, key: str, tensor: "Tensor") -> TensorInfo:
        dtype = str(tensor.dtype).removeprefix("torch.")
        data = copy_tensor_bytes(tensor.contiguous()) if tensor.numel() else b""
        return self._anonymous_file.add_tensor(key, dtype, tuple(tensor.shape), data)

    def _resolve_source(self, op: InjectTensor, draft: Draft) -> TensorInfo:
        kind, _, argument = op.source.partition(":")
        if kind not in {"attribute", "file"}:
            _require_dense(op, (self.expected or {}).get(op.key))
        if kind == "attribute":
            return self._read_attribute(op, argument or op.key, draft)
        if kind == "constructor" and not argument:
            return self._read_constructor_value(op)
        if kind == "seed" and argument.isdecimal():
            return self._require_module(op).build_seeded_value(
                op.key, int(argument), self._anonymous_file
            )
        if kind == "file" and "#" in argument:
            return self._read_file_tensor(op, argument)
        if kind == "npz" and "#" in argument:
            path, _, name = argument.rpartition("#")
            archive = parse_location(path)
            self._source_guard.add_path(archive)
            return read_array(archive, name, self._anonymous_file, self._limits)
        if kind in {"literal", "zeros"}:
            return self._build_literal(op, argument if kind == "literal" else "0")
        raise PlanError(
            f"inject `{op.key}`: {_format_source(op)} is not a source: {', '.join(SOURCE_FORMS)}"
        )

    def _read_attribute(self, op: InjectTensor, path: str, draft: Draft) -> TensorInfo:
        tensor = self.find_attribute(path, draft)
        if tensor is None:
            attribute_names = join_limited(draft.state.unsaved_tensors, MAX_NAMED) or "none"
            raise PlanError(
                f"inject `{op.key}`: no pickled module has the attribute `{path}` (available: "
                f"{attribute_names})"
            )
        return tensor

    def _read_constructor_value(self, op: InjectTensor) -> TensorInfo:
        target_module = self._require_module(op)
        module_tensor = target_module.module_info.saved_tensors.get(op.key)
        if module_tensor is not None and module_tensor.constancy is Constancy.RANDOM:
            raise PlanError(
                f"inject `{op.key}`: its value differs each time {target_module.module_info.target}"
                " is built, so the constructor cannot restore it; give another source with --inject"
            )
        return target_module.get_constructor_value(op.key, self._anonymous_file)

    def _require_module(self, op: InjectTensor) -> "TargetModule":
        if self._target_module is None:
            raise PlanError(
                f"inject `{op.key}`: its source {_format_source(op)} needs a module (-m)"
            )
        return self._target_module

    def _read_file_tensor(self, op: InjectTensor, reference: str) -> TensorInfo:
        name, _, key = reference.partition("#")
        path = parse_location(name)
        for state in self._open_file(path).states:
            tensor = state.tensors.get(key) or state.unsaved_tensors.get(key)
            if tensor is not None:
                return tensor
        raise PlanError(f"inject `{op.key}`: {path} has no tensor {key!r}")

    def _open_file(self, path: Location) -> Checkpoint:
        if path not in self._checkpoints:
            self._source_guard.add_path(path)
            self._checkpoints[path] = open_weights(path, self._limits)
        return self._checkpoints[path]

    def _build_literal(self, op: InjectTensor, text: str) -> TensorInfo:
        """Build a tensor from a JSON literal; dtype and shape are `op`'s, else the module's."""
        try:
            value = json.loads(text)
            numbers = list(_flatten_list(value))
        except ValueError as error:
            raise PlanError(
                f"inject `{op.key}`: {text!r} is not a number or nested list"
            ) from error
        except RecursionError as error:
            raise PlanError(f"inject `{op.key}`: the literal nests too deep") from error
        expected = (self.expected or {}).get(op.key)
        if not numbers or any(type(number) not in {int, float, bool} for number in numbers):
            raise PlanError(f"inject `{op.key}`: {text!r} contains something other than numbers")
        shape = (
            op.shape
            if op.shape is not None
            else expected.shape
            if expected
            else _infer_shape(value)
        )
        dtype = op.dtype or (expected.dtype if expected else _infer_dtype(numbers))
        count = len(numbers)
        numel = prod(shape)
        if count not in {1, numel}:
            raise PlanError(f"inject `{op.key}`: {count} numbers for the shape {list(shape)}")
        data = _pack_literal(op, dtype, numbers) * (numel if count == 1 else 1)
        return self._anonymous_file.add_tensor(op.key, dtype, shape, data)


def describe_rounding(differences: Mapping[str, float]) -> tuple[str, ...]:
    """Return a note on the steps whose result equals torch's up to rounding only, if any."""
    if not differences:
        return ()
    step = max(differences, key=lambda name: differences[name])
    others = f", the largest of {len(differences)} such steps" if len(differences) > 1 else ""
    difference = f"changes elements of the weight by at most {differences[step]:.1e}"
    return (f"equal up to rounding: {step} {difference}{others}",)


def _require_dense(op: InjectTensor, expected: TensorInfo | None) -> None:
    """Raise PlanError if the module has a tensor there that elements alone do not describe."""
    if expected is None:
        return
    kind = expected.wrapper or expected.layout
    if kind not in {"strided", "lazy"}:
        raise PlanError(
            f"inject `{op.key}`: the module has a {kind} tensor there, and only dense tensors are "
            "injected: load the file with strict=False, and save the module's state_dict()"
        )


def _format_source(op: InjectTensor) -> str:
    return repr(mask_credentials(op.source))


def _pack_literal(op: InjectTensor, dtype: str, numbers: list[float]) -> bytes:
    if not any(numbers) and dtype in DTYPE_BITS:
        return bytes(len(numbers) * DTYPE_BITS[dtype] // 8)
    if dtype == "bfloat16":
        # bfloat16 is the upper half of a float32; the lower half must be zero.
        float32_words = [struct.pack("<f", number) for number in numbers]
        if all(word[:2] == b"\0\0" for word in float32_words):
            return b"".join(word[2:] for word in float32_words)
    code = STRUCT_CODES.get(dtype)
    try:
        if code is not None:
            return struct.pack(f"<{len(numbers)}{code}", *numbers)
    except (struct.error, OverflowError) as error:
        raise PlanError(f"inject `{op.key}`: is not a {dtype}: {error}") from error
    raise PlanError(f"inject `{op.key}`: a literal cannot be converted to {dtype} exactly")


def _flatten_list(value: object) -> Iterator[float]:
    if isinstance(value, list):
        for element in value:
            yield from _flatten_list(element)
    else:
        yield value  # type: ignore[misc]  # the caller looks


def _infer_shape(value: object) -> tuple[int, ...]:
    return (len(value), *_infer_shape(value[0])) if isinstance(value, list) and value else ()


def _infer_dtype(numbers: list[float]) -> str:
    if all(type(number) is bool for number in numbers):
        return "bool"
    return "int64" if all(type(number) is int for number in numbers) else "float32"


def _check_value(op: InjectTensor, tensor: TensorInfo, expected: TensorInfo | None) -> None:
    if reason := unreadable_reason(tensor):
        raise PlanError(
            f"inject `{op.key}`: its value in {_format_source(op)} cannot be read: {reason}"
        )
    if op.dtype and op.dtype != tensor.dtype:
        raise PlanError(
            f"inject `{op.key}`: {_format_source(op)} is {tensor.dtype}, not {op.dtype}"
        )
    shape = (
        op.shape
        if op.shape is not None
        else expected.shape
        if expected is not None
        else tensor.shape
    )
    if shape != tensor.shape:
        raise PlanError(
            f"inject `{op.key}`: {_format_source(op)} is {list(tensor.shape)} but the shape must "
            f"be {list(shape)}"
        )
