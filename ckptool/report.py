"""What a command says: typed, frozen, and the same in JSON field by field."""

from collections.abc import Mapping
from typing import Any, Final

from msgspec import UNSET, Struct, UnsetType

SCHEMA: Final = 1
"""Within one number, fields are only added."""


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
    """The checkpoint that it is about; "" where it is about a module alone."""
    where: str = ""
    """"file:line" of the source that it is about, "" where there is none."""
    fails: bool = False
    """Whether the run fails for it."""
    fingerprint: str = ""
    """Of rule, key and facts; a moved line of source does not change it."""


class SilencedReport(Struct, frozen=True, kw_only=True):
    """A finding that does not count."""

    finding: FindingReport
    by: str
    """"waiver" or "baseline"."""
    reason: str


class SkippedReport(Struct, frozen=True, kw_only=True):
    what: str
    reason: str
    path: str = ""
    """The checkpoint that it is about, where there are several."""


class TensorReport(Struct, frozen=True, kw_only=True):
    key: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    """Of the elements; a storage may hold more."""
    device: str
    kind: str = ""
    """"parameter", "buffer" ...; "" where the file does not say."""
    layout: str = "strided"


class StateReport(Struct, frozen=True, kw_only=True):
    at: str
    role: str
    tensors: tuple[TensorReport, ...]
    unsaved: tuple[TensorReport, ...]
    """Of a pickled module: what its state_dict() would leave out."""
    others: Mapping[str, str]
    ties: tuple[tuple[str, ...], ...]


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


class UnsavedReport(Struct, frozen=True, kw_only=True):
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
    """"file:line" of the first use that forward reaches, "" if none was found."""
    in_file: bool
    """Whether this file, a pickled module, holds its value all the same."""


class KeyVerdict(Struct, frozen=True, kw_only=True):
    """What one key that does not match is, whether it matters, and what to do."""

    key: str
    problem: str
    """"missing", "unexpected" or "mismatched"."""
    code: str
    what: str
    level: str
    fix: str


class PictureReport(Struct, frozen=True, kw_only=True):
    """The values of a small tensor, or of some rows and columns of a larger one, as shades."""

    key: str
    of: str
    """Whose value it is: "file", "module", "old" or "new"."""
    shape: tuple[int, ...]
    dtype: str
    whole: bool
    """Whether every element is shown."""
    legend: tuple[str, ...]
    """What each shade means: numbers or ranges of them, from low to high, then what is not finite.
    The pictures of one key have one legend."""
    finite: int
    """How many shades of the legend are numbers."""
    rows: tuple[tuple[int, ...], ...]
    """Of each element its place in the legend."""


class DrawingReport(Struct, frozen=True, kw_only=True):
    """What a picture of a report needs, and no other format."""

    tensors: tuple[TensorReport, ...] = ()
    """Of the file, or of the new one of two."""
    expected: tuple[TensorReport, ...] = ()
    """What the module saves, or the old file has."""
    pictures: tuple[PictureReport, ...] = ()


class Report(Struct, frozen=True, kw_only=True):
    """What every report has."""

    command: str
    findings: tuple[FindingReport, ...]
    skipped: tuple[SkippedReport, ...]
    exit_code: int
    schema: int = SCHEMA
    silenced: tuple[SilencedReport, ...] = ()
    drawing: DrawingReport | UnsetType = UNSET
    """Only where pictures were asked for."""


class FactReport(Struct, frozen=True, kw_only=True):
    name: str
    value: str


class InspectReport(Report, frozen=True, kw_only=True):
    checkpoints: tuple[CheckpointReport, ...]
    errors: tuple[str, ...] = ()
    """One line for each path that could not be read."""


class DiffModuleReport(Report, frozen=True, kw_only=True):
    verdict: str
    """"loads strictly", "loads, but ..." or "does not load ..."."""
    path: str
    module: str
    at: str
    notes: tuple[str, ...]
    matched: tuple[str, ...]
    missing_keys: tuple[str, ...]
    unexpected_keys: tuple[str, ...]
    mismatched_keys: tuple[str, ...]
    verdicts: tuple[KeyVerdict, ...]
    unsaved: tuple[UnsavedReport, ...]
    coverage: float
    """Share of the parameters' elements that would load, 0 to 1."""
    explanation: tuple[FactReport, ...] = ()
    """All that is known of the one key asked for."""


class ChangeReport(Struct, frozen=True, kw_only=True):
    """How the values of one tensor differ between two files.

    Figures are over the elements that are finite on both sides, in float64; None where there are
    none, or where the shapes differ.
    """

    key: str
    old_dtype: str
    new_dtype: str
    elements: int
    changed: int
    """Elements that are another number; NaN is equal to NaN of the same bits."""
    max_abs: float | None
    mean_abs: float | None
    relative_l2: float | None
    """Norm of the difference by the norm of the old values; None where that is zero."""
    cosine: float | None
    close: bool
    """Equal within the tolerances."""
    rounding: bool
    """Two dtypes, and the one rounded to the other is the same: nothing but rounding."""
    old_nonfinite: int
    new_nonfinite: int
    histogram: tuple[int, ...] = ()
    """Changed elements by the decade of their absolute difference: below 1e-12, then a decade
    each up to 1e3, then all above: 17 counts."""


class DiffFilesReport(Report, frozen=True, kw_only=True):
    verdict: str
    """"identical", "same state, other container", "values within tolerance", "values differ",
    "compatible" or "breaking"."""
    old: str
    new: str
    old_at: str
    new_at: str
    added_keys: tuple[str, ...]
    removed_keys: tuple[str, ...]
    changed_keys: tuple[str, ...]
    """In both, with another shape, dtype, layout or other values."""
    renamed_keys: Mapping[str, str]
    """Removed key -> added key that is probably the same tensor."""
    value_keys: tuple[str, ...]
    """Those of `changed_keys` whose values alone differ."""
    changed_entries: tuple[str, ...]
    """Places of plain data (an epoch, a configuration) that differ."""
    changes: tuple[ChangeReport, ...] = ()
    """Of the tensors whose values or dtypes differ, the largest relative change first."""
    rtol: float | None = None
    """The tolerances that were given; None where none were."""
    atol: float | None = None
    explanation: tuple[FactReport, ...] = ()
    """All that is known of the one key asked for."""


class PartReport(Report, frozen=True, kw_only=True):
    """What one of several machines found: `ckptool merge` puts the parts together."""

    verdict: str
    old: str
    new: str
    part: int
    """From 1."""
    parts: int
    compared: int
    """Tensors, or groups of renamed ones, that were this part's."""
    differing_keys: tuple[str, ...]
    evidence: Mapping[str, Any]
    """All that the whole report needs to be made without the files; no format to rely on."""


class AuditReport(Report, frozen=True, kw_only=True):
    module: str
    unsaved: tuple[UnsavedReport, ...]
    parameters: tuple[TensorReport, ...]
    persistent_buffers: tuple[TensorReport, ...]
    since: str = ""
    """Of a watched module: since when the state in `unsaved` was changed; only that is listed."""


class StepReport(Struct, frozen=True, kw_only=True):
    """One operation of a plan."""

    op: str
    before: str
    after: str
    why: str
    source: str = ""
    """Where an injected value comes from."""
    loses: str = ""
    """What the result no longer has."""


class CheckReport(Struct, frozen=True, kw_only=True):
    name: str
    result: str
    """"passed" or "skipped"; a check that fails is an error, and nothing is written."""
    reason: str


class MigrateReport(Report, frozen=True, kw_only=True):
    verdict: str
    """"migrated ...", "converted ...", "nothing to do ..." or "planned (dry run) ..."."""
    source: str
    source_container: str
    target: str
    """"" where nothing was written."""
    target_container: str
    at: str
    module: str
    """"" without one."""
    steps: tuple[StepReport, ...]
    checks: tuple[CheckReport, ...]
    notes: tuple[str, ...]
    source_digest: str
    """Of the state's content, whatever the container; "" where nothing was written."""
    result_digest: str


class LevelReport(Struct, frozen=True, kw_only=True):
    level: str
    """load, device, forward, equality, "round trip" or survival."""
    status: str
    """passed, failed, skipped or inconclusive."""
    reason: str
    device: str
    """Where it ran: "cpu", "cuda:0", "simulated cuda:0"; "" where nothing ran."""
    details: tuple[str, ...]


class ClashReport(Struct, frozen=True, kw_only=True):
    """An operation whose operands are on two devices."""

    attribute: str
    """"" where the module does not hold the tensor."""
    what: str
    devices: tuple[str, str]
    """Where it is, and where it would have to be."""
    op: str
    where: str
    module: str


class VerifyReport(Report, frozen=True, kw_only=True):
    verdict: str
    """"verified ...", "failed at ..." or "not verified ..."."""
    path: str
    module: str
    at: str
    device: str
    levels: tuple[LevelReport, ...]
    clashes: tuple[ClashReport, ...]
    lost: tuple[str, ...]
    """State that did not survive: it was changed, saved and loaded."""
    notes: tuple[str, ...]


class DifferenceReport(Struct, frozen=True, kw_only=True):
    """One thing that a lock says, and that is another now."""

    key: str
    what: str
    """"added", "removed", "shape", "dtype", "kind", "saved", "owner", "version" ..."""
    old: str
    new: str


class LockReport(Report, frozen=True, kw_only=True):
    verdict: str
    """"locked ...", "the lock holds", "the lock is stale ..." or "recorded"."""
    path: str
    """What was written or checked."""
    source: str
    """"module" or "checkpoint"."""
    name: str
    name_before: str
    """What the lock before was taken from, "" where that is the same."""
    keys: int
    unsaved: int
    """Tensors that the module holds beside its state_dict."""
    standing: str
    """"the same", "compatible", "additive" or "breaking"; "" where there was no lock before."""
    differences: tuple[DifferenceReport, ...]
    golden: str = ""
    """The checkpoint whose outputs were recorded, "" where a lock was written."""
    notes: tuple[str, ...] = ()


class PromiseReport(Struct, frozen=True, kw_only=True):
    """One thing that a release was held to."""

    what: str
    """"against", "fixture" or "golden"."""
    name: str
    result: str
    """"compatible", "additive", "breaking" ...; "loads strictly", "migrates: ..." ..."""
    reason: str = ""
    """Why a fixture has no way, or how outputs differ."""


class GatedReport(Struct, frozen=True, kw_only=True):
    """One checkpoint of a release."""

    path: str
    verdict: str
    """"passed", "failed: ..." or "could not be checked: ..."."""
    passed: bool
    container: str = ""
    """"" where it could not be read, as all that follows."""
    nbytes: int = 0
    module: str = ""
    """"" where none is named: the rules about modules were not run then."""
    at: str = ""
    rules: tuple[str, ...] = ()
    """Codes of the rules that looked at it."""
    levels: tuple[LevelReport, ...] = ()
    """Of the verification that the policy requires."""
    promises: tuple[PromiseReport, ...] = ()


class GateReport(Report, frozen=True, kw_only=True):
    verdict: str
    """"passed ...", "failed ..." or "could not check ..."."""
    checkpoints: tuple[GatedReport, ...]
    policy: str
    """The file of the policy, "" where there is none."""
    errors: tuple[str, ...] = ()
    """One line for each checkpoint that could not be checked."""
    notes: tuple[str, ...] = ()


class SettingReport(Struct, frozen=True, kw_only=True):
    name: str
    value: str
    origin: str
    """"default", an option, or "FILE: [table]"."""
    path: str = ""
    """The checkpoint for which it holds, "" for all."""


class PolicyReport(Report, frozen=True, kw_only=True):
    settings: tuple[SettingReport, ...]


class TensorDigestReport(Struct, frozen=True, kw_only=True):
    key: str
    """With its state's place in front, where several states are digested."""
    dtype: str
    shape: tuple[int, ...]
    digest: str
    """The same in every container, key order and shard layout; "" where it could not be made."""
    reason: str
    """Why it could not be."""


class CheckpointDigestReport(Struct, frozen=True, kw_only=True):
    path: str
    container: str
    at: str
    """Place of the state; "*" is all of the file's."""
    digest: str
    """Of all tensors; begins with "partial:" where one of them has no digest."""
    tensors: tuple[TensorDigestReport, ...]


class DigestCheckReport(Struct, frozen=True, kw_only=True):
    """How the content differs from a digest of before, by key."""

    saved: str
    """The file with that digest."""
    digest: str
    changed: tuple[str, ...]
    missing: tuple[str, ...]
    added: tuple[str, ...]
    untold: tuple[str, ...]
    """Those of which one side has no digest."""


class DigestReport(Report, frozen=True, kw_only=True):
    format: str
    """How digests are made: "ckptool-1"."""
    checkpoints: tuple[CheckpointDigestReport, ...]
    check: DigestCheckReport | None = None
    """With --check."""
    errors: tuple[str, ...] = ()
    """One line for each path that could not be read."""


class RuleReport(Struct, frozen=True, kw_only=True):
    code: str
    name: str
    level: str
    why: str
    fix: str
    message: str
    example: str
    gate: str
    """Level in `ckptool gate`, "" where it is the same."""


AnyReport = (
    InspectReport
    | DiffModuleReport
    | DiffFilesReport
    | PartReport
    | AuditReport
    | MigrateReport
    | VerifyReport
    | LockReport
    | GateReport
    | PolicyReport
    | DigestReport
)
