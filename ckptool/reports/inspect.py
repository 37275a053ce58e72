"""InspectReport: the result of `inspect`."""

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from ckptool.compare.quantization.declaration import (
    compare_declaration,
    find_checkpoint_quantization,
)
from ckptool.compare.quantization.scheme import QuantizationInfo
from ckptool.compare.quantization.summary import group_layers
from ckptool.errors import ReadError
from ckptool.model import Checkpoint, Skipped, StateDict, join_key
from ckptool.policy import ExitCode, Verdict
from ckptool.reports.common import (
    Report,
    TensorReport,
    build_finding_reports,
    build_silenced_reports,
    build_skipped_reports,
    build_tensor_report,
)
from ckptool.reports.details.load_safety import count_parameters, describe_safety
from ckptool.reports.details.tensor_values import TensorValuesReport


class InspectView(Struct, frozen=True):
    """Which tensors are shown, and how."""

    filter: str = ""
    """Glob of keys or places, or a part of them; "" for all."""
    depth: int = 0
    """Levels of the tree; 0 for all."""
    sort: str = ""
    """"name", "size" or "dtype"; "" for the file's order."""


DEFAULT_VIEW: Final = InspectView()
SORTS: Final = ("name", "size", "dtype")


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
    safety: str = ""
    """One line that answers "is it safe": "safe: torch.load(weights_only=True) reads it"."""
    parameters: int = 0
    """Elements of the parameters of all states of models, tied ones once."""
    values: TensorValuesReport | None = None
    """Values of --key; None without it."""
    quantization_config: str = ""
    """What the configuration next to the file declares, and whether the file confirms it."""


class InspectReport(Report, frozen=True, kw_only=True):
    checkpoints: tuple[CheckpointReport, ...]
    errors: tuple[str, ...] = ()
    """One line for each path that could not be read."""
    error_paths: tuple[str, ...] = ()
    """The path of each line of `errors`."""
    depth: int = 0
    """Levels of the tree of keys that people are shown; 0 for all."""
    sort: str = ""
    """Order of the tensors: "name", "size" or "dtype"; "" for the file's."""

    @property
    def has_multiple_checkpoints(self) -> bool:
        return len(self.checkpoints) > 1


def build_inspect_report(
    checkpoints: tuple[Checkpoint, ...],
    verdict: Verdict,
    errors: Sequence[ReadError],
    extra_skipped: tuple[Skipped, ...] = (),
    view: InspectView = DEFAULT_VIEW,
    values: Sequence[TensorValuesReport] = (),
) -> InspectReport:
    """Build the report of the checkpoints' contents, of the tensors that `view` selects.

    `values` are those of --key, one of each checkpoint; () without it.
    """
    return InspectReport(
        command="inspect",
        findings=build_finding_reports(verdict),
        silenced=build_silenced_reports(verdict),
        skipped=build_skipped_reports(
            (*(s for c in checkpoints for s in c.skipped), *extra_skipped)
        ),
        exit_code=ExitCode.COULD_NOT_CHECK if errors else verdict.exit_code,
        checkpoints=tuple(
            _build_checkpoint_report(c, view, values[i] if values else None)
            for i, c in enumerate(checkpoints)
        ),
        errors=tuple(map(str, errors)),
        error_paths=tuple(str(error.path) for error in errors),
        depth=view.depth,
        sort=view.sort,
    )


_ROLE_RANKS: Final = {"state_dict": 0, "module": 0, "optimizer": 1, "tensors": 2}
"""Order of the states in a report: the model before optimizers and loose tensors."""


def _build_checkpoint_report(
    checkpoint: Checkpoint, view: InspectView, values: TensorValuesReport | None
) -> CheckpointReport:
    quantization = {s.at: info for s, info in find_checkpoint_quantization(checkpoint)}
    states = [state for s in checkpoint.states if (state := _filter_state(s, view.filter))]
    return CheckpointReport(
        path=str(checkpoint.path),
        container=str(checkpoint.container),
        nbytes=checkpoint.nbytes,
        globals=tuple(sorted({use.qualified_name for use in checkpoint.globals})),
        states=tuple(
            _build_state_report(state, quantization.get(state.at))
            for state in sorted(states, key=lambda state: _ROLE_RANKS.get(state.role, 1))
        ),
        entries=tuple(EntryReport(at=e.at, text=e.text) for e in checkpoint.entries),
        metadata=checkpoint.metadata,
        damage=checkpoint.damage,
        safety=describe_safety(checkpoint),
        parameters=count_parameters(checkpoint.states),
        values=values,
        quantization_config=_format_declaration(checkpoint),
    )


def _filter_state(state: StateDict, pattern: str) -> StateDict | None:
    """Return the state with the tensors that match `pattern` only; None if none does."""
    if not pattern:
        return state
    glob = pattern if any(sign in pattern for sign in "*?[") else f"*{pattern}*"

    def is_shown(key: str) -> bool:
        return fnmatchcase(key, glob) or fnmatchcase(join_key(state.at, key), glob)

    tensors = {key: tensor for key, tensor in state.tensors.items() if is_shown(key)}
    unsaved = {key: tensor for key, tensor in state.unsaved_tensors.items() if is_shown(key)}
    if not (tensors or unsaved):
        return None
    return replace(state, tensors=tensors, unsaved_tensors=unsaved)


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
        ties=state.ties,
        quantized=tuple(_build_quantized_reports(quantization)) if quantization else (),
    )
