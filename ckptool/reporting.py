"""What was found and judged -> the report that a command gives."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ckptool.compare import Changed, Loading, Missing, Revision, Unexpected
from ckptool.explain import explain_loading, explain_revision
from ckptool.model import Checkpoint, Held, Kind, ModuleState, Skipped, State, TensorInfo, ties
from ckptool.policy import ExitCode, Verdict
from ckptool.report import (
    AuditReport,
    CheckpointReport,
    CheckReport,
    ClashReport,
    DiffFilesReport,
    DiffModuleReport,
    EntryReport,
    FactReport,
    FindingReport,
    InspectReport,
    KeyVerdict,
    LevelReport,
    MigrateReport,
    SkippedReport,
    StateReport,
    StepReport,
    TensorReport,
    UnsavedReport,
    VerifyReport,
)
from ckptool.rules import Finding, Level

if TYPE_CHECKING:
    from ckptool.migration.ops import Operation
    from ckptool.migration.run import Migration
    from ckptool.verification.facts import Verification


def inspected(
    checkpoints: tuple[Checkpoint, ...], verdict: Verdict, errors: tuple[str, ...]
) -> InspectReport:
    """Report what the checkpoints hold."""
    return InspectReport(
        command="inspect",
        findings=_findings(verdict),
        skipped=_skipped(s for c in checkpoints for s in c.skipped),
        exit_code=ExitCode.COULD_NOT_CHECK if errors else verdict.exit_code,
        checkpoints=tuple(_checkpoint(c) for c in checkpoints),
        errors=errors,
    )


def loaded(
    loading: Loading, verdict: Verdict, notes: tuple[str, ...], explain: str | None = None
) -> DiffModuleReport:
    """Report what loading the file into the module would do.

    Raises:
        UsageError: `explain` is a key that neither side has.
    """
    return DiffModuleReport(
        command="diff",
        findings=_findings(verdict),
        skipped=_skipped((*loading.checkpoint.skipped, *loading.module.skipped)),
        exit_code=verdict.exit_code,
        verdict=_loading_words(loading, verdict),
        path=str(loading.checkpoint.path),
        module=loading.module.target,
        at=loading.state.at,
        notes=notes,
        matched=loading.matched,
        missing_keys=loading.missing_keys,
        unexpected_keys=loading.unexpected_keys,
        mismatched_keys=tuple(c.key for c in loading.mismatched),
        verdicts=tuple(_verdicts(loading, verdict)),
        unsaved=_unsaved(loading.module, loading.state),
        coverage=loading.coverage,
        explanation=_facts(explain_loading(loading, explain) if explain else ()),
    )


def revised(revision: Revision, verdict: Verdict, explain: str | None = None) -> DiffFilesReport:
    """Report how two files differ.

    Raises:
        UsageError: `explain` is a key that neither side has.
    """
    skipped = [*revision.old.skipped, *revision.new.skipped]
    if revision.differing is None:
        skipped.append(Skipped("values", "--no-values: only keys, shapes and dtypes were compared"))
    no_bytes = "its elements are no plain bytes in the file"
    skipped.extend(Skipped(f"values of {key}", no_bytes) for key in revision.untold)
    different = tuple(c.key for c in revision.changes if isinstance(c, Changed))
    return DiffFilesReport(
        command="diff",
        findings=_findings(verdict),
        skipped=_skipped(skipped),
        exit_code=verdict.exit_code,
        verdict=revision_words(revision),
        old=str(revision.old.path),
        new=str(revision.new.path),
        old_at=revision.places[0],
        new_at=revision.places[1],
        added_keys=tuple(c.key for c in revision.changes if isinstance(c, Unexpected)),
        removed_keys=tuple(c.key for c in revision.changes if isinstance(c, Missing)),
        changed_keys=(*different, *(revision.differing or ())),
        renamed_keys=revision.renames,
        value_keys=revision.differing or (),
        changed_entries=revision.entries,
        explanation=_facts(explain_revision(revision, explain) if explain else ()),
    )


def audited(module: ModuleState, verdict: Verdict) -> AuditReport:
    """Report what the module holds and does not save."""
    saved = module.saved.values()
    return AuditReport(
        command="audit",
        findings=_findings(verdict),
        skipped=_skipped(module.skipped),
        exit_code=verdict.exit_code,
        module=module.target,
        unsaved=_unsaved(module, None),
        parameters=tuple(_tensor(h.tensor, h.kind) for h in saved if h.kind is Kind.PARAMETER),
        persistent_buffers=tuple(
            _tensor(h.tensor, h.kind) for h in saved if h.kind is not Kind.PARAMETER
        ),
    )


def migrated(done: "Migration", verdict: Verdict) -> MigrateReport:
    """Report what a migration did, or would do."""
    met, digests = done.loading, done.digests
    return MigrateReport(
        command="migrate",
        findings=_findings(verdict),
        skipped=_skipped(
            [
                *done.checkpoint.skipped,
                *(done.module.skipped if done.module else ()),
                *(Skipped(c.name, c.reason) for c in done.checks if c.result == "skipped"),
            ]
        ),
        exit_code=verdict.exit_code if met is not None and not met.strict else ExitCode.PASSED,
        verdict=_migration_words(done),
        source=str(done.checkpoint.path),
        source_container=str(done.checkpoint.container),
        target=str(done.target) if digests else "",
        target_container=str(done.container),
        at=done.state.at,
        module=done.module.target if done.module else "",
        steps=tuple(map(_step, done.plan.ops)),
        checks=tuple(
            CheckReport(name=c.name, result=c.result, reason=c.reason) for c in done.checks
        ),
        notes=done.notes,
        source_digest=digests.source if digests else "",
        result_digest=digests.result if digests else "",
    )


def verified(
    done: "Verification", at: str, verdict: Verdict, notes: tuple[str, ...] = ()
) -> VerifyReport:
    """Report what running a checkpoint's module showed.

    Where nothing failed, and something that was tried proves nothing, it could not be checked.
    """
    unproved = any(one.status == "inconclusive" for one in done.levels)
    passed = verdict.exit_code == ExitCode.PASSED and not done.failed
    return VerifyReport(
        command="verify",
        findings=_findings(verdict),
        skipped=_skipped(done.skipped),
        exit_code=ExitCode.COULD_NOT_CHECK if passed and unproved else verdict.exit_code,
        verdict=_verification_words(done),
        path=done.path,
        module=done.module,
        at=at,
        device=done.device,
        levels=tuple(
            LevelReport(
                level=str(one.level),
                status=str(one.status),
                reason=one.reason,
                device=one.device,
                details=one.details,
            )
            for one in done.levels
        ),
        clashes=tuple(
            ClashReport(
                attribute=one.attribute,
                what=one.what,
                devices=one.devices,
                op=one.op,
                where=one.where,
                module=one.module,
            )
            for one in done.clashes
        ),
        lost=done.lost,
        notes=(*notes, *done.notes),
    )


def _verification_words(done: "Verification") -> str:
    """Return the verdict: what failed, or what is not proved, or how much was."""
    named = {
        status: [str(one.level) for one in done.levels if one.status == status]
        for status in ("failed", "inconclusive", "skipped", "passed")
    }
    if named["failed"]:
        reason = done.failed[0].reason
        return f"failed at {', '.join(named['failed'])}: {reason}"
    left = [f"{s}: {', '.join(named[s])}" for s in ("inconclusive", "skipped") if named[s]]
    rest = f" ({'; '.join(left)})" if left else ""
    if "forward" in named["passed"]:
        return f"verified on {done.device}: {', '.join(named['passed'])}{rest}"
    return f"not verified: nothing shows that it runs on {done.device}{rest}"


def _step(op: "Operation") -> StepReport:
    before, after = op.words
    return StepReport(
        op=str(op.__struct_config__.tag),
        before=before,
        after=after,
        why=op.why,
        source=getattr(op, "source", ""),
        loses=op.loses,
    )


def _migration_words(done: "Migration") -> str:
    met, passed = done.loading, any(c.result == "passed" for c in done.checks)
    if done.again:
        what = "nothing to do, the plan was applied already"
    elif done.plan.ops:
        what = "migrated"
    else:
        what = "converted" if done.converted else "nothing to do"
    if done.digests is None:
        what = "planned (dry run)" if done.plan.ops else f"{what} (dry run)"
    if met is None:
        return what
    if not met.strict:
        return f"{what}: {_counts(met)}".replace("does not", "would not")
    return f"{what}: {'loads' if passed else 'would load'} strictly"


def revision_words(revision: Revision) -> str:
    """Return the verdict on two files.

    "breaking": what loads the old file strictly does not load the new one so. "compatible": it
    does, though a dtype or a tie differs, or not all values were compared.
    """
    shapes = any(isinstance(c, Changed) and "shape" in c.fields for c in revision.changes)
    if shapes or any(isinstance(c, Missing | Unexpected) for c in revision.changes):
        return "breaking"
    if revision.changes:
        return "compatible"
    if revision.differing or revision.entries:
        return "values differ"
    if revision.differing is None or revision.untold:
        return "compatible"
    if revision.moved:
        return "same state, other container"
    return "compatible" if revision.ties_differ else "identical"


def _loading_words(loading: Loading, verdict: Verdict) -> str:
    if not loading.strict:
        return _counts(loading)
    graver = [f for f in verdict.findings if f.level >= Level.WARNING]
    if not graver:
        return "loads strictly"
    lost = {f.key for f in graver if f.rule.code.startswith("CK1")}
    if lost:
        names = ", ".join(f"`{k}`" for k in sorted(lost)[:3]) + (" ..." if len(lost) > 3 else "")
        return f"loads, but {names} {'is' if len(lost) == 1 else 'are'} not saved with it"
    return f"loads, but {_first_sentence(graver[0])}"


def _counts(loading: Loading) -> str:
    counts = (
        (len(loading.missing_keys), "missing"),
        (len(loading.unexpected_keys), "unexpected"),
        (len(loading.mismatched), "of another shape"),
    )
    return "does not load: " + ", ".join(f"{n} {word}" for n, word in counts if n)


def _first_sentence(finding: Finding) -> str:
    return finding.message.split(": ", 1)[0]


def _verdicts(loading: Loading, verdict: Verdict) -> list[KeyVerdict]:
    by_key: dict[str, Finding] = {}
    for finding in verdict.findings:
        if finding.rule.code.startswith("CK2") or finding.rule.code == "CK112":
            by_key.setdefault(finding.key, finding)
    explained = _explained(loading, verdict)
    groups = (
        ("missing", loading.missing_keys),
        ("unexpected", loading.unexpected_keys),
        ("mismatched", tuple(c.key for c in loading.mismatched)),
    )
    return [
        _verdict(key, problem, explained.get(key) or by_key.get(key))
        for problem, keys in groups
        for key in keys
    ]


def _explained(loading: Loading, verdict: Verdict) -> dict[str, Finding]:
    """Return the finding about a whole rewrite or rename for each key that it explains."""
    found = {f.rule.code: f for f in verdict.findings if f.rule.code == "CK209"}
    explained: dict[str, Finding] = {}
    if loading.rewrite and "CK209" in found:
        for old, new in loading.rewrite.keys.items():
            explained[old] = explained[new] = found["CK209"]
    for finding in verdict.findings:
        if finding.rule.code == "CK211":
            explained[finding.key] = explained[str(finding.facts["found"])] = finding
    return explained


def _verdict(key: str, problem: str, finding: Finding | None) -> KeyVerdict:
    if finding is None:
        return KeyVerdict(key=key, problem=problem, code="", what="", level="", fix="")
    return KeyVerdict(
        key=key,
        problem=problem,
        code=finding.rule.code,
        what=finding.message,
        level=finding.level.word,
        fix=finding.fix,
    )


def _facts(pairs: Iterable[tuple[str, str]]) -> tuple[FactReport, ...]:
    return tuple(FactReport(name=name, value=value) for name, value in pairs)


def _findings(verdict: Verdict) -> tuple[FindingReport, ...]:
    return tuple(
        FindingReport(
            code=f.rule.code,
            name=f.rule.name,
            level=f.level.word,
            key=f.key,
            message=f.message,
            fix=f.fix,
            facts=f.facts,
        )
        for f in verdict.findings
    )


def _skipped(skipped: Iterable[Skipped]) -> tuple[SkippedReport, ...]:
    return tuple(SkippedReport(what=s.what, reason=s.reason) for s in skipped)


def _checkpoint(checkpoint: Checkpoint) -> CheckpointReport:
    return CheckpointReport(
        path=str(checkpoint.path),
        container=str(checkpoint.container),
        nbytes=checkpoint.nbytes,
        globals=tuple(sorted({use.qualified for use in checkpoint.globals})),
        states=tuple(_state(state) for state in checkpoint.states),
        entries=tuple(EntryReport(at=e.at, text=e.text) for e in checkpoint.entries),
        metadata=checkpoint.metadata,
        damage=checkpoint.damage,
    )


def _state(state: State) -> StateReport:
    return StateReport(
        at=state.at,
        role=state.role,
        tensors=tuple(_tensor(t, t.kind) for t in state.tensors.values()),
        unsaved=tuple(_tensor(t, t.kind) for t in state.unsaved.values()),
        others=state.others,
        ties=ties(state.tensors.values()),
    )


def _tensor(tensor: TensorInfo, kind: Kind | None) -> TensorReport:
    return TensorReport(
        key=tensor.key,
        shape=tensor.shape,
        dtype=tensor.dtype,
        nbytes=tensor.nbytes,
        device=tensor.device,
        kind=str(kind or ""),
        layout=tensor.layout,
    )


def _unsaved(module: ModuleState, state: State | None) -> tuple[UnsavedReport, ...]:
    kept = state.unsaved if state else {}
    return tuple(
        _unsaved_one(held, held.key in kept)
        for held in module.unsaved.values()
        if not held.alias_of
    )


def _unsaved_one(held: Held, in_file: bool) -> UnsavedReport:  # noqa: FBT001
    return UnsavedReport(
        key=held.key,
        kind=str(held.kind),
        owner=held.owner,
        shape=held.tensor.shape,
        dtype=held.tensor.dtype,
        nbytes=held.tensor.nbytes,
        constancy=str(held.constancy),
        follows_to=held.follows_to,
        where=held.where,
        used=held.used,
        in_file=in_file,
    )
