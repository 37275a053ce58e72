"""Structs that several reports share, and their builders."""

from collections.abc import Iterable, Mapping
from html import escape
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from msgspec import UNSET, Struct, UnsetType

from ckptool.compare.framework.loading_info import LoadingInfo
from ckptool.compare.module_diff import ModuleDiff
from ckptool.model import Kind, ModuleInfo, ModuleTensor, Skipped, StateDict, TensorInfo
from ckptool.phrases import pluralize, pluralize_mismatches
from ckptool.policy import Verdict
from ckptool.rules import Finding
from ckptool.rules.causes import Attribution, attribute_findings

if TYPE_CHECKING:
    from ckptool.verification.result import LevelResult


SCHEMA: Final = 1
"""Version of the JSON output; within one version, fields are only added."""


class FindingReport(Struct, frozen=True, kw_only=True):
    code: str
    name: str
    level: str
    """"note", "warning" or "error"."""
    key: str
    message: str
    fix: str
    facts: Mapping[str, Any]
    path: str = ""
    """The checkpoint concerned; "" for a finding about a module only."""
    where: str = ""
    """"file:line" of the source concerned, "" if there is none."""
    fails: bool = False
    """Whether this finding fails the run."""
    fingerprint: str = ""
    """Digest of rule, key and facts; independent of source lines."""
    summary: str = ""
    """The message without its detail."""
    cause: str = ""
    """Name of what is wrong: a rule, a key or sub-tree, a source line. Findings of one cause have
    the same; "" for a silenced finding."""
    is_consequence: bool = False
    """Whether another finding of the same cause says what is wrong, and what to change."""
    cause_count: int = 1
    """Number of causes that bring it about together; `cause` is the first of them."""


class SilencedReport(Struct, frozen=True, kw_only=True):
    """A finding that does not count, and why."""

    finding: FindingReport
    by: str
    """"waiver" or "baseline"."""
    reason: str


class SkippedReport(Struct, frozen=True, kw_only=True):
    what: str
    reason: str
    path: str = ""
    """The checkpoint concerned if there are several, else ""."""


class TensorReport(Struct, frozen=True, kw_only=True):
    key: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    """Bytes of the elements; the storage may be larger."""
    device: str
    kind: str = ""
    """"parameter", "buffer" ...; "" if the file does not record it."""
    layout: str = "strided"


class UnsavedTensorReport(Struct, frozen=True, kw_only=True):
    key: str
    kind: str
    """A `model.Kind`: attribute, container, non-persistent-buffer, array, module, parameter or
    class-attribute."""
    owner: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    constancy: str
    """constant, random, mutated or unknown."""
    follows_to: bool
    where: str
    """"file:line" of the assignment, "" if unknown."""
    used: str
    """"file:line" of the first use reachable from forward, "" if none was found."""
    in_file: bool
    """Whether the file, a pickled module, contains its value although no state_dict does."""


class FactReport(Struct, frozen=True, kw_only=True):
    name: str
    value: str


class LevelReport(Struct, frozen=True, kw_only=True):
    level: str
    """load, device, forward, equality, "round trip" or persistence."""
    status: str
    """passed, failed, skipped or inconclusive."""
    reason: str
    device: str
    """Device of the run: "cpu", "cuda:0", "simulated cuda:0"; "" if nothing ran."""
    details: tuple[str, ...]


class PictureReport(Struct, frozen=True, kw_only=True):
    """Values of a small tensor, or of sampled rows and columns of a larger one, as shades."""

    key: str
    of: str
    """Source of the values: "file", "module", "old" or "new"."""
    shape: tuple[int, ...]
    dtype: str
    whole: bool
    """Whether every element is shown."""
    legend: tuple[str, ...]
    """Label of each shade: ascending numbers or ranges, then non-finite values.
    All pictures of one key share one legend."""
    finite: int
    """Number of shades in the legend that are finite; they come first."""
    rows: tuple[tuple[int, ...], ...]
    """Index into the legend for each element."""


class DrawingReport(Struct, frozen=True, kw_only=True):
    """Data that only the charts of the HTML report need."""

    tensors: tuple[TensorReport, ...] = ()
    """Tensors of the file, or of the new one of two files."""
    expected: tuple[TensorReport, ...] = ()
    """Tensors of the module's state_dict, or of the old file."""
    pictures: tuple[PictureReport, ...] = ()


class Report(Struct, frozen=True, kw_only=True):
    """Fields of every report."""

    command: str
    findings: tuple[FindingReport, ...]
    skipped: tuple[SkippedReport, ...]
    exit_code: int
    schema: int = SCHEMA
    silenced: tuple[SilencedReport, ...] = ()
    drawing: DrawingReport | UnsetType = UNSET
    """UNSET unless charts were requested."""

    @property
    def module_reports(self) -> "tuple[Report, ...]":
        """Reports that are shown in blocks of their own, with their findings."""
        return ()

    @property
    def has_details(self) -> bool:
        """Whether there is more to show of one module of several than its verdict."""
        return bool(self.findings or self.silenced or self.skipped)

    @property
    def has_multiple_checkpoints(self) -> bool:
        """Whether findings must name their checkpoint even if all are about the same one."""
        return False

    def __str__(self) -> str:
        """Return the report as the command prints it; `repr()` has every field."""
        return _render(self, "table").rstrip("\n")

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:  # noqa: ARG002, FBT001
        """Have IPython show the report as text."""
        printer.text(str(self))

    def _repr_html_(self) -> str:
        """Return the HTML report in a frame: a notebook shows it, and its styles stay in it."""
        page = _render(self, "html")
        return (
            f'<iframe srcdoc="{escape(page)}" sandbox="" title="ckptool '
            f'{self.command}" style="width: 100%; height: 32em; border: 0"></iframe>'
        )

    def _repr_markdown_(self) -> str:
        """Return the report as Markdown, for readers of notebooks that show no frames."""
        return _render(self, "markdown")


def _render(report: Report, format_: str) -> str:
    # By name, as `render` finds a format: the import order is from here to there.
    render_package = import_module("ckptool.render")
    text: str = render_package.render(format_, report, render_package.RenderOptions())
    return text


def build_level_report(level_result: "LevelResult") -> LevelReport:
    return LevelReport(
        level=str(level_result.level),
        status=str(level_result.status),
        reason=level_result.reason,
        device=level_result.device,
        details=level_result.details,
    )


def build_finding_reports(verdict: Verdict) -> tuple[FindingReport, ...]:
    attributions = attribute_findings(verdict.findings)
    return tuple(map(_build_finding_report, verdict.findings, attributions))


def build_silenced_reports(verdict: Verdict) -> tuple[SilencedReport, ...]:
    return tuple(
        SilencedReport(
            finding=_build_finding_report(entry.finding), by=entry.by, reason=entry.reason
        )
        for entry in verdict.silenced
    )


_NO_CAUSE: Final = Attribution("", is_consequence=False)


def _build_finding_report(finding: Finding, attribution: Attribution = _NO_CAUSE) -> FindingReport:
    return FindingReport(
        code=finding.rule.code,
        name=finding.rule.name,
        level=finding.level.word,
        key=finding.key,
        message=finding.message,
        fix=finding.fix,
        facts=finding.facts,
        path=finding.path,
        where=finding.where,
        fails=finding.fails,
        fingerprint=finding.fingerprint,
        summary=finding.summary,
        cause=attribution.cause,
        is_consequence=attribution.is_consequence,
        cause_count=attribution.cause_count,
    )


def build_skipped_reports(skipped: Iterable[Skipped], path: str = "") -> tuple[SkippedReport, ...]:
    return tuple(SkippedReport(what=s.what, reason=s.reason, path=path) for s in skipped)


def build_fact_reports(pairs: Iterable[tuple[str, str]]) -> tuple[FactReport, ...]:
    return tuple(FactReport(name=name, value=value) for name, value in pairs)


def build_tensor_report(tensor: TensorInfo, kind: Kind | None) -> TensorReport:
    return TensorReport(
        key=tensor.key,
        shape=tensor.shape,
        dtype=tensor.dtype,
        nbytes=tensor.nbytes,
        device=tensor.device,
        kind=str(kind) if kind else "",
        layout=tensor.layout,
    )


def build_unsaved_reports(
    module: ModuleInfo, state: StateDict | None
) -> tuple[UnsavedTensorReport, ...]:
    """Build the reports of unsaved tensors, without aliases; `state` is the file's state_dict."""
    pickled_tensors = state.unsaved_tensors if state else {}
    return tuple(
        _build_unsaved_report(module_tensor, in_file=module_tensor.key in pickled_tensors)
        for module_tensor in module.unsaved_tensors.values()
        if not module_tensor.alias_of
    )


def _build_unsaved_report(module_tensor: ModuleTensor, *, in_file: bool) -> UnsavedTensorReport:
    return UnsavedTensorReport(
        key=module_tensor.key,
        kind=str(module_tensor.kind),
        owner=module_tensor.owner,
        shape=module_tensor.tensor.shape,
        dtype=module_tensor.tensor.dtype,
        nbytes=module_tensor.tensor.nbytes,
        constancy=str(module_tensor.constancy),
        follows_to=module_tensor.follows_to,
        where=module_tensor.assigned_at,
        used=module_tensor.used_at,
        in_file=in_file,
    )


def format_project_verdict(checked_count: int, failed_count: int, error_count: int) -> str:
    """Return how many modules of a configuration were looked at, failed, and could not be."""
    counts = [pluralize(checked_count, "module")]
    if checked_count and not failed_count and not error_count:
        return f"{counts[0]} passed"
    counts += [f"{failed_count} failed"] if failed_count else []
    counts += [f"{error_count} not checked"] if error_count else []
    return ", ".join(counts)


def format_load_failure(diff: ModuleDiff, failure: str = "does not load") -> str:
    """Return `failure` and the number of missing, unexpected and mismatched keys."""
    if diff.unchecked_load is not None:
        failure = f"not checked: {diff.unchecked_load.what}; by keys and shapes alone"
    if diff.loading_info is not None and failure == "does not load":
        failure = _format_framework_failure(diff.loading_info)
    mismatch_counts = (
        (len(diff.missing_keys), f"{len(diff.missing_keys)} missing"),
        (len(diff.unexpected_keys), f"{len(diff.unexpected_keys)} unexpected"),
        (len(diff.shape_mismatches), pluralize_mismatches(len(diff.shape_mismatches))),
        (len(diff.mistyped_keys), f"{len(diff.mistyped_keys)} without a tensor"),
    )
    has_error = diff.loading_info is not None and bool(diff.loading_info.error)
    if (
        has_error or not any(count for count, _ in mismatch_counts)
    ) and diff.load_outcome is not None:
        return f"{failure}: {diff.load_outcome.error}"
    return f"{failure}: " + ", ".join(text for count, text in mismatch_counts if count)


def _format_framework_failure(loading_info: LoadingInfo) -> str:
    """Return what becomes of a load by a framework that is not whole, without its counts."""
    if loading_info.error or loading_info.mismatched_shapes or loading_info.is_strict:
        return f"does not load with {loading_info.loader}"
    return f"loads in part with {loading_info.loader}"


def format_strict_load(diff: ModuleDiff, success: str = "loads") -> str:
    """Return `success` and, if the module's own code makes it so, of how many keys."""
    if diff.loading_info is not None:
        count = len(diff.loading_info.conversions)
        converted = f", which converts {pluralize(count, 'key')}" if count else ""
        return f"{success} with {diff.loading_info.loader}{converted}"
    if not diff.load_steps:
        return f"{success} strictly"
    upgraded = pluralize(len(diff.load_steps), "key")
    return f"{success} strictly, by the module's own upgrade of {upgraded}"


def format_unchecked_load(diff: ModuleDiff, unchecked: Skipped) -> str:
    upgraded = pluralize(len(diff.load_steps), "key")
    after = f" after the module's own upgrade of {upgraded}" if diff.load_steps else ""
    return f"keys and shapes match{after}; not checked: {unchecked.what}"
