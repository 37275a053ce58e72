"""InspectReport: the result of `inspect`."""

from collections.abc import Iterator, Mapping, Sequence

from msgspec import Struct

from ckptool.compare.quantization.declaration import (
    compare_declaration,
    find_checkpoint_quantization,
)
from ckptool.compare.quantization.scheme import QuantizationInfo
from ckptool.compare.quantization.summary import group_layers
from ckptool.errors import ReadError
from ckptool.model import Checkpoint, Skipped, StateDict, tied_keys
from ckptool.policy import ExitCode, Verdict
from ckptool.reports.common import (
    Report,
    TensorReport,
    build_finding_reports,
    build_silenced_reports,
    build_skipped_reports,
    build_tensor_report,
)


class QuantizedWeightsReport(Struct, frozen=True, kw_only=True):
    """Quantised weights of one scheme and format whose keys differ in layer numbers only."""

    scheme: str
    """"GPTQ", "4-bit of bitsandbytes"."""
    pattern: str
    """Key of the weight before quantisation, with `*` for layer numbers."""
    weights: int
    bits: int
    """Bits of one element; 0 if the tensors do not say."""
    group_size: int
    """Elements of a row that share a scale; 0 if scales are shared otherwise, or not known."""
    scaling: str
    """What shares a scale: "groups of 128", "one scale per row"; "" if not known."""
    keys: tuple[str, ...]
    """Keys of all their tensors."""
    is_complete: bool
    """Whether no tensor is missing, and they fit each other."""


class StateReport(Struct, frozen=True, kw_only=True):
    at: str
    role: str
    tensors: tuple[TensorReport, ...]
    unsaved: tuple[TensorReport, ...]
    """Of a pickled module: tensors that its state_dict() omits."""
    others: Mapping[str, str]
    ties: tuple[tuple[str, ...], ...]
    quantized: tuple[QuantizedWeightsReport, ...] = ()
    """The quantised weights, by scheme, format and pattern of keys."""


class EntryReport(Struct, frozen=True, kw_only=True):
    at: str
    text: str


class CheckpointReport(Struct, frozen=True, kw_only=True):
    path: str
    container: str
    nbytes: int
    globals: tuple[str, ...]
    """All names that the file's pickles would import, "module.name", sorted."""
    states: tuple[StateReport, ...]
    entries: tuple[EntryReport, ...]
    metadata: Mapping[str, str]
    damage: str
    quantization_config: str = ""
    """What the configuration next to the file declares, and whether the file confirms it."""


class InspectReport(Report, frozen=True, kw_only=True):
    checkpoints: tuple[CheckpointReport, ...]
    errors: tuple[str, ...] = ()
    """One line for each path that could not be read."""
    error_paths: tuple[str, ...] = ()
    """The path of each line of `errors`."""

    @property
    def has_multiple_checkpoints(self) -> bool:
        return len(self.checkpoints) > 1


def build_inspect_report(
    checkpoints: tuple[Checkpoint, ...],
    verdict: Verdict,
    errors: Sequence[ReadError],
    extra_skipped: tuple[Skipped, ...] = (),
) -> InspectReport:
    """Build the report of the checkpoints' contents."""
    return InspectReport(
        command="inspect",
        findings=build_finding_reports(verdict),
        silenced=build_silenced_reports(verdict),
        skipped=build_skipped_reports(
            (*(s for c in checkpoints for s in c.skipped), *extra_skipped)
        ),
        exit_code=ExitCode.COULD_NOT_CHECK if errors else verdict.exit_code,
        checkpoints=tuple(_build_checkpoint_report(c) for c in checkpoints),
        errors=tuple(map(str, errors)),
        error_paths=tuple(str(error.path) for error in errors),
    )


def _build_checkpoint_report(checkpoint: Checkpoint) -> CheckpointReport:
    quantization = {s.at: info for s, info in find_checkpoint_quantization(checkpoint)}
    return CheckpointReport(
        path=str(checkpoint.path),
        container=str(checkpoint.container),
        nbytes=checkpoint.nbytes,
        globals=tuple(sorted({use.qualified_name for use in checkpoint.globals})),
        states=tuple(
            _build_state_report(state, quantization.get(state.at)) for state in checkpoint.states
        ),
        entries=tuple(EntryReport(at=e.at, text=e.text) for e in checkpoint.entries),
        metadata=checkpoint.metadata,
        damage=checkpoint.damage,
        quantization_config=_format_declaration(checkpoint),
    )


def _format_declaration(checkpoint: Checkpoint) -> str:
    declaration = checkpoint.quantization_declaration
    if declaration is None or not declaration.method:
        return ""
    comparison = compare_declaration(checkpoint, declaration)
    text = f"{declaration.file_name} declares {declaration.phrase}"
    if comparison.contradiction:
        return f"{text}: contradicted"
    return f"{text}: confirmed" if comparison.is_confirmed else f"{text}: not checked"


def _build_quantized_reports(info: QuantizationInfo) -> Iterator[QuantizedWeightsReport]:
    for group in group_layers(info.layers):
        weight_format = group.first.format
        yield QuantizedWeightsReport(
            scheme=group.first.scheme.name,
            pattern=group.pattern,
            weights=len(group.layers),
            bits=weight_format.bits,
            group_size=weight_format.group_size,
            scaling=weight_format.scaling,
            keys=tuple(key for layer in group.layers for key in layer.keys.values()),
            is_complete=group.first.is_complete,
        )


def _build_state_report(state: StateDict, quantization: QuantizationInfo | None) -> StateReport:
    return StateReport(
        at=state.at,
        role=state.role,
        tensors=tuple(build_tensor_report(t, t.kind) for t in state.tensors.values()),
        unsaved=tuple(build_tensor_report(t, t.kind) for t in state.unsaved_tensors.values()),
        others=state.non_tensors,
        ties=tied_keys(state.tensors.values()),
        quantized=tuple(_build_quantized_reports(quantization)) if quantization else (),
    )
