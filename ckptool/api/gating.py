"""Release (checkpoints, modules) x Policy -> GateReport: pass or fail, with an exit code."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from ckptool import report
from ckptool.api.contracts import Promises, alone, held_to, promised
from ckptool.api.drawing import draw_loading, draw_state
from ckptool.api.refusing import refuse
from ckptool.api.required import steps_of, verified
from ckptool.api.target import Named, PathLike, Target, find_target, opened, written_here
from ckptool.compare import Loading, loading
from ckptool.config import Config, Waiver, load_config
from ckptool.errors import ModuleError, ReadError, UsageError
from ckptool.formats.limits import DEFAULT, Limits
from ckptool.locations import Location, locate
from ckptool.model import Checkpoint, ModuleState, Skipped
from ckptool.policy import Baseline, ExitCode, Policy, Verdict, judge
from ckptool.policy import baseline as baselines
from ckptool.policy.effective import Options, policy_of, settings_of
from ckptool.reporting.gating import Gated, gated, shown
from ckptool.reporting.promises import HeldTo
from ckptool.rules import Finding, run
from ckptool.rules.registry import checked
from ckptool.rules.requirements import UPKEEP, Release, Upkeep, asked
from ckptool.valued import Valued, valued, with_values

if TYPE_CHECKING:
    from torch import nn

    from ckptool.verification.facts import Exercise, Verification

NO_MODULE = Skipped(
    "the module",
    "none is named for it with -m or in [[tool.ckptool.models]]: only the file's rules were run",
)
NO_VALUES = Skipped("values", "--no-values: only the structure was judged")


class Seen(Struct, frozen=True):
    """One checkpoint of a release with its module and the results of all checks."""

    path: str
    checkpoint: Checkpoint | None
    """None if a module is checked without a checkpoint."""
    module: ModuleState | None = None
    loading: Loading | None = None
    exercises: "tuple[Exercise, ...]" = ()
    verification: "Verification | None" = None
    steps: Mapping[str, str] = {}
    """Required verification level -> why it did not pass, "" if it passed."""
    held: HeldTo = HeldTo()
    values: Valued | None = None
    """None if values were not read."""

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        told = [*(self.checkpoint.skipped if self.checkpoint else ())]
        told += self.held.skipped
        told += self.module.skipped if self.module else [NO_MODULE]
        told += self.verification.skipped if self.verification else ()
        if self.checkpoint:
            told += self.values.skipped if self.values else [NO_VALUES]
        return tuple(dict.fromkeys(told))


def subjects(seen: Seen) -> tuple[object, ...]:
    """Return the subjects to run rules on for one checkpoint; add new kinds of subject here."""
    found: tuple[object | None, ...] = (
        seen.checkpoint,
        seen.module,
        seen.loading,
        *seen.exercises,
        seen.verification,
        *seen.held.subjects,
        seen.values,
    )
    return tuple(one for one in found if one is not None)


def gate(  # noqa: PLR0913
    paths: PathLike | Sequence[PathLike],
    *,
    module: "str | nn.Module | None" = None,
    kwargs: Mapping[str, object] | None = None,
    at: str | None = None,
    inputs: object = None,
    values: bool = True,
    against: "PathLike | nn.Module | None" = None,
    fixtures: Sequence[str | Path] = (),
    plans: Sequence[str | Path] = (),
    golden: Sequence[str | Path] = (),
    baseline: PathLike | None = None,
    update_baseline: bool = False,
    exit_zero: bool = False,
    policy: Policy | None = None,
    limits: Limits = DEFAULT,
    config: Config | None = None,
    pictures: bool = False,
) -> report.GateReport:
    """Judge checkpoints by a policy; one that cannot be checked does not stop the others.

    Args:
        paths: the checkpoints of the release; if empty, the named module, or each configured one,
            is checked against its `against` and `fixtures`.
        module: "package.module:Name" or a live module; None takes the configuration's for each
            path; where it has none, only the rules about files are run.
        kwargs: constructor arguments.
        at: dotted place of the state in the files ("state_dict"); None takes the best match.
        inputs: arguments of forward, as for `verify`, for policies that require a verification.
        values: also apply the rules about values (CK4xx): this reads whole files.
        against: a lock, an older checkpoint, or an older module ("package.module:Name").
        fixtures: old checkpoints, or globs of them, that the module must load or migrate.
        plans: migration plans for the fixtures, besides the derived ones.
        golden: files of recorded outputs that the module must reproduce.
        baseline: file of known findings, which do not fail; None takes the configuration's.
        update_baseline: write all current findings into that file.
        exit_zero: exit 0 if the gate failed; if something could not be checked, still exit 2.
        policy: None takes the configuration's.
        limits: bounds on the memory and time that reading a file may take.
        config: the configuration; None takes the nearest one from the current directory up.
        pictures: for a single checkpoint, read the values of small buffers, for drawing.

    Raises:
        ConfigError: the configuration or the baseline is invalid.
        UsageError: the options exclude each other, or the inputs are invalid.
        WriteError: the baseline cannot be written.
    """
    settings = load_config(Path.cwd()) if config is None else config
    rules = replace(policy or policy_of(settings), gate=True)
    file = _baseline_file(baseline, settings, update=update_baseline)
    before = None if file is None else _before(file, update=update_baseline)
    given = [locate(one) for one in ([paths] if isinstance(paths, PathLike) else paths)]
    promises = Promises(against, tuple(fixtures), tuple(golden), tuple(plans), len(given) > 1)
    _refuse_lone_plans(promises, settings)
    named = Named(module, kwargs, at)
    seen, errors = _Examiner(rules, limits, settings, named, inputs, promises, values).all(given)
    if file is not None and update_baseline:
        before = _updated(file, before, seen, rules)
    verdict = _judged(seen, rules, before)
    order = tuple(map(str, given)) or tuple(s.path for s in seen)
    judged = gated([_gated(s, rules) for s in seen], errors, order, verdict, rules.source)
    if pictures and len(seen) == 1:
        judged = _drawn(judged, seen[0])
    forgiven = exit_zero and judged.exit_code == ExitCode.FAILED
    return replace(judged, exit_code=ExitCode.PASSED) if forgiven else judged


def _refuse_lone_plans(promises: Promises, config: Config) -> None:
    fixtures = promises.fixtures or any(entry.fixtures for entry in config.settings.models)
    lone = bool(promises.plans) and not fixtures
    refuse({"--plan": lone}, "is for old checkpoints: name them with --fixtures GLOB")


def _gated(seen: Seen, policy: Policy) -> Gated:
    return Gated(
        path=seen.path,
        checkpoint=seen.checkpoint,
        loading=seen.loading,
        verification=seen.verification,
        skipped=seen.skipped,
        rules=_ran(seen, policy),
        held=seen.held,
    )


def _drawn(judged: report.GateReport, seen: Seen) -> report.GateReport:
    if seen.loading is not None:
        return draw_loading(judged, seen.loading)
    if seen.checkpoint is None or not seen.checkpoint.states:
        return judged
    return draw_state(judged, seen.checkpoint.states[0])


def effective_policy(
    paths: Sequence[PathLike], *, options: Options, config: Config
) -> report.PolicyReport:
    """Return the policy that applies to each of `paths`, with the origin of each setting.

    Raises:
        ConfigError: the configuration is invalid.
    """
    if not paths:
        return shown({"": settings_of(config, options, None)})
    return shown({str(path): settings_of(config, options, str(path)) for path in paths})


class _Examiner(Struct, frozen=True):
    """Runs all checks on checkpoints; describes each named module only once."""

    policy: Policy
    limits: Limits
    config: Config
    named: Named
    inputs: object
    promises: Promises
    values: bool
    modules: dict[str, ModuleState] = {}
    """Cache of descriptions of modules named by a str: arguments as text -> ModuleInfo."""

    def all(self, paths: Sequence[Location]) -> tuple[list[Seen], dict[str, str]]:
        """Return the results and path -> error; with no paths, results of modules alone."""
        seen: list[Seen] = []
        errors: dict[str, str] = {}
        for path in dict.fromkeys(paths):
            try:
                seen.append(self.examined(path, find_target(path, self.named, self.config)))
            except (ReadError, ModuleError) as error:
                errors[str(path)] = str(error)
        if not paths:
            found = alone(self.promises, self.named.target, self.config)
            seen += [self.alone(target, promises) for target, promises in found]
        return seen, errors

    def examined(self, path: Location, target: Target | None) -> Seen:
        """Run all checks on the checkpoint at `path` and its module.

        Raises:
            ReadError: the checkpoint cannot be read.
            ModuleError: the module cannot be built.
        """
        checkpoint = opened(path, self.limits)
        require = self.policy.at(str(path)).require
        promises = promised(self.promises, self.config, path)
        numbers = valued(checkpoint) if self.values else None
        if target is None:
            steps = steps_of(require, None, "no module is named for it")
            held = held_to(promises, checkpoint, None, None, self.limits)
            return Seen(str(path), checkpoint, steps=steps, held=held, values=numbers)
        state = self._module(target, checkpoint)
        state, ran = target.exercised(target.hyper(checkpoint), state, self.inputs)
        met = loading(checkpoint, state, target.at)
        met = with_values(met) if self.values else met
        done, steps = verified(checkpoint, target, require, self.inputs)
        held = held_to(promises, checkpoint, state, target, self.limits)
        return Seen(str(path), checkpoint, state, met, ran, done, steps, held, numbers)

    def alone(self, target: Target, promises: Promises) -> Seen:
        """Check a module against its expectations, without a checkpoint.

        Raises:
            ReadError: a lock or an old checkpoint cannot be read.
            ModuleError: the module cannot be built.
        """
        state = target.examined({})
        held = held_to(promises, None, state, target, self.limits)
        return Seen(state.target, None, state, held=held)

    def _module(self, target: Target, checkpoint: Checkpoint) -> ModuleState:
        hyper = target.hyper(checkpoint)
        name = repr((str(target.module), id(target.module), target.kwargs, hyper, target.search))
        if not isinstance(target.module, str) or name not in self.modules:
            self.modules[name] = target.examined(hyper)
        return self.modules[name]


def _judged(seen: Sequence[Seen], policy: Policy, known: Baseline | None) -> Verdict:
    """Return the verdict on all checkpoints, including findings about stale policy entries."""
    found = [one for s in seen for one in _findings(s, policy, known)]
    upkeep = _upkeep(judge(found, policy, known=known), seen, policy, known)
    return judge([*found, *run([upkeep], policy.source)], policy, known=known)


def _findings(seen: Seen, policy: Policy, known: Baseline | None) -> Iterator[Finding]:
    found = run(subjects(seen), seen.path)
    yield from found
    left = _unmatched(seen.loading, judge(found, policy, known=known)) if seen.loading else ()
    yield from run(_release(seen, policy, left), seen.path)


def _release(seen: Seen, policy: Policy, unmatched: tuple[str, ...] = ()) -> tuple[Release, ...]:
    if seen.checkpoint is None:
        return ()
    require = policy.at(seen.path).require
    return (Release(seen.checkpoint, require, seen.loading, unmatched, seen.steps),)


def _looked(seen: Seen, policy: Policy) -> tuple[str, ...]:
    """Return the codes of all rules that apply and are reported, required by policy or not."""
    given = (*subjects(seen), *_release(seen, policy))
    return tuple(filter(policy.at(seen.path).reports, checked(given)))


def _ran(seen: Seen, policy: Policy) -> tuple[str, ...]:
    """Return the sorted codes of the rules that ran and are reported."""
    codes = set(checked(subjects(seen)))
    codes.update(*(asked(one) for one in _release(seen, policy)))
    return tuple(sorted(filter(policy.at(seen.path).reports, codes)))


def _unmatched(met: Loading, verdict: Verdict) -> tuple[str, ...]:
    """Return keys that prevent a strict load and have neither a failing nor a silenced finding."""
    told = {f.key for f in verdict.findings if f.fails}
    silent = [one.finding for one in verdict.silenced]
    told |= {f.key for f in silent}
    if met.rewrite and any(f.rule.code == "CK209" for f in silent):
        told |= {*met.rewrite.keys, *met.rewrite.keys.values()}
    missing = [key for key in met.missing_keys if key not in met.restored]
    keys = (*missing, *met.unexpected_keys, *(c.key for c in met.mismatched))
    return tuple(key for key in dict.fromkeys(keys) if key not in told)


def _upkeep(
    verdict: Verdict, seen: Sequence[Seen], policy: Policy, known: Baseline | None
) -> Upkeep:
    """Return expired, unused and vanished policy entries; rules that did not run do not count."""
    ran = {s.path: _looked(s, policy) for s in seen}
    here = {(policy.relative(path), code) for path, codes in ran.items() for code in codes}
    used = {one.waiver for one in verdict.silenced if one.waiver}
    found = {
        baselines.known(one.finding, policy.relative(one.finding.path))
        for one in verdict.silenced
        if one.by == "baseline"
    }
    gone = (known.known if known else frozenset()) - found
    return Upkeep(
        expired=tuple(w for w in policy.waivers if policy.expired(w)),
        unused=tuple(
            w
            for w in policy.waivers
            if w not in used and not policy.expired(w) and _looked_for(w, ran, policy)
        ),
        vanished=tuple((k.path, k.rule, k.key) for k in sorted(gone) if (k.path, k.rule) in here),
    )


def _looked_for(waiver: Waiver, ran: Mapping[str, Sequence[str]], policy: Policy) -> bool:
    """Whether a rule that `waiver` covers ran on a checkpoint that it covers."""
    return any(
        policy.matching(waiver, path)
        and any(code.startswith(waiver.rule.upper()) for code in codes)
        for path, codes in ran.items()
    )


def _baseline_file(given: PathLike | None, config: Config, *, update: bool) -> Path | None:
    named = config.settings.baseline
    if given is not None:
        return written_here(given)
    if named is not None:
        return config.directory / named
    if update:
        raise UsageError("--update-baseline: name the file with --baseline FILE")
    return None


def _before(file: Path, *, update: bool) -> Baseline | None:
    """Return the baseline in `file`; None if it is to be created."""
    return None if update and not file.exists() else baselines.read(file)


def _updated(file: Path, old: Baseline | None, seen: Sequence[Seen], policy: Policy) -> Baseline:
    """Write all current findings to the baseline, and keep those of paths not checked now."""
    from ckptool.formats.atomic import write_file

    here = {policy.relative(s.path) for s in seen}
    others = {k for k in (old.known if old else ()) if k.path not in here}
    verdict = _judged(seen, policy, None)
    found = {
        baselines.known(f, policy.relative(f.path))
        for f in verdict.findings
        if f.rule.code not in UPKEEP
    }
    write_file(file, baselines.text(others | found).encode(), force=True)
    return Baseline(frozenset(others | found))
