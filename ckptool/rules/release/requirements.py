"""ReleaseCandidate -> hits: what a policy requires of a file (CK210, CK329, CK851-CK856, CK860)."""

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Final

from msgspec import Struct

from ckptool.compare.module_diff import ModuleDiff
from ckptool.config import ReleaseRequirements, parse_size
from ckptool.folding import fold_names
from ckptool.model import (
    Checkpoint,
    Container,
    Safety,
    Skipped,
    TensorInfo,
    join_key,
    natural_sort_key,
)
from ckptool.phrases import join_limited, quote_code, quote_path
from ckptool.rules.fixes.commands import (
    UNNAMED_MODULE,
    advise_conversion,
    format_convert_command,
    format_migrate_command,
    format_repeated_command,
)
from ckptool.rules.load.summary import MIN_COVERAGE
from ckptool.rules.registry import (
    CONVERT,
    MIGRATE,
    Level,
    Rule,
    RuleHit,
    check,
    check_other_subject,
    hit,
)
from ckptool.rules.release.policy_issues import PolicyIssues

_CAST_DTYPES: Final = ("float64", "float32", "float16", "bfloat16")
"""Dtypes that `ckptool convert --dtype` casts from and to."""


class ReleaseCandidate(Struct, frozen=True):
    """A checkpoint and the requirements of the policy that apply to it."""

    checkpoint: Checkpoint
    requirements: ReleaseRequirements
    diff: ModuleDiff | None = None
    """The checkpoint against its module; None without a module."""
    unmatched_keys: tuple[str, ...] = ()
    """Keys that prevent a strict load and have no failing or waived finding of their own."""
    unloadable_place: str = ""
    """Usual place of a model's state_dict, whose state does not load where another one does."""
    level_failures: Mapping[str, str] = {}
    """Required level of a verification -> why it did not pass, "" if it passed."""
    unchecked: tuple[Skipped, ...] = ()
    """What the checkpoint had to be held to and could not be: a lock, old checkpoints, outputs."""


def select_required_codes(release: ReleaseCandidate) -> frozenset[str]:
    """Return the codes of the policy requirements that apply to this release."""
    requirements, has_module = release.requirements, release.diff is not None
    is_required = {
        "CK851": has_module and requirements.strict is not False,
        "CK860": has_module,
        "CK329": bool(_list_unchecked(release)),
        "CK852": requirements.dtypes is not None,
        "CK853": requirements.max_size is not None,
        "CK854": bool(requirements.safetensors),
        "CK855": requirements.globals is not None,
        "CK856": bool(requirements.verify),
    }
    return frozenset(code for code, is_active in is_required.items() if is_active)


@check_other_subject(
    ReleaseCandidate,
    "CK210",
    summary=(
        "only {percent}% of the parameters' elements would load, and the policy asks for {least}%"
    ),
    fix=(
        "Fix the other findings. What a migration would change, and ask: {command}. Or lower "
        "`coverage` in [tool.ckptool.require]."
    ),
)
def find_insufficient_coverage(release: ReleaseCandidate) -> Iterator[RuleHit]:
    min_coverage, diff = release.requirements.coverage, release.diff
    if (
        min_coverage is not None
        and diff is not None
        and MIN_COVERAGE <= diff.coverage < min_coverage
    ):
        percent, least = (f"{100 * share:.4g}" for share in (diff.coverage, min_coverage))
        command = f"{format_migrate_command(diff)} --dry-run"
        yield hit(diff.state.at, percent=percent, least=least, command=command)


@check(
    ReleaseCandidate,
    Rule(
        code="CK851",
        name="required-strict-load",
        level=Level.ERROR,
        summary="the release does not load strictly",
        detail="{keys}",
        why=("load_state_dict() is strict by default, so users who load the release get an error."),
        fix=(
            "Migrate it: {command}. The findings on these keys explain what it asks. If the "
            "file does not have to load strictly: strict = false in [tool.ckptool.require]."
        ),
        general_command=MIGRATE,
        example=(
            "class Net(nn.Module):  # today's code\n    def __init__(self):\n       "
            ' super().__init__()\n        self.register_buffer("mask", torch.ones(3))  # the'
            " release was saved without it"
        ),
    ),
)
def find_strict_load_failure(release: ReleaseCandidate) -> Iterator[RuleHit]:
    diff, strict = release.diff, release.requirements.strict
    if strict is True and diff is not None and diff.unchecked_load:
        unchecked = diff.unchecked_load
        reason = f"not checked: {unchecked.what}: {unchecked.reason}"
        yield hit("", keys=reason, command=format_migrate_command(diff))
    if strict is False or not release.unmatched_keys:
        return
    keys = join_limited(fold_names(release.unmatched_keys), 3, quote_code)
    verb = "does" if len(release.unmatched_keys) == 1 else "do"
    command = format_migrate_command(diff) if diff is not None else ""
    yield hit("", keys=f"{keys} {verb} not match the module", command=command)


@check(
    ReleaseCandidate,
    Rule(
        code="CK860",
        name="other-mapping-judged",
        level=Level.ERROR,
        summary="`{key}` does not load strictly, and `{judged}` of the same file was judged",
        why=(
            "Users load the state_dict from its usual key path; that another mapping of the file "
            "matches the module does not help them."
        ),
        fix="Save the right state_dict there, or judge the one that users load: {command}",
        general_command="ckptool gate FILE --at KEY",
        example=(
            'torch.save({"state_dict": other.state_dict(), "extra": model.state_dict()}, "m.pth")'
        ),
    ),
)
def find_unloadable_place(release: ReleaseCandidate) -> Iterator[RuleHit]:
    if release.unloadable_place and release.diff is not None:
        options = ("--at", release.unloadable_place)
        command = format_repeated_command(*options) or "ckptool gate with --at KEY"
        judged = release.diff.state.at or "."
        yield hit(release.unloadable_place, judged=judged, command=command)


@check(
    ReleaseCandidate,
    Rule(
        code="CK852",
        name="forbidden-dtype",
        level=Level.ERROR,
        summary="`{key}` is {dtype}; the policy allows {allowed}",
        why="An unintended dtype wastes memory, or was rounded along the way.",
        fix=(
            "Save it as an allowed dtype, or add {dtype} to `dtypes` in [tool.ckptool.require]."
            "{conversion}"
        ),
        example=(
            '# dtypes = ["bfloat16"]\n'
            'torch.save({"weight": torch.ones(3, dtype=torch.float32)}, "model.pth")'
        ),
    ),
)
def find_forbidden_dtypes(release: ReleaseCandidate) -> Iterator[RuleHit]:
    allowed_dtypes = release.requirements.dtypes
    if allowed_dtypes is None:
        return
    for state in release.checkpoint.states:
        for key, tensor in state.tensors.items():
            if not _matches_any_glob(tensor.dtype, allowed_dtypes):
                yield hit(
                    join_key(state.at, key),
                    dtype=tensor.dtype,
                    allowed=", ".join(allowed_dtypes),
                    conversion=_advise_cast(release.checkpoint, tensor, allowed_dtypes),
                )


def _advise_cast(checkpoint: Checkpoint, tensor: TensorInfo, allowed_dtypes: Sequence[str]) -> str:
    """Return the conversion that casts to the one floating point dtype that is allowed; else ""."""
    targets = [dtype for dtype in _CAST_DTYPES if dtype in allowed_dtypes]
    if len(targets) != 1 or tensor.dtype not in _CAST_DTYPES:
        return ""
    return advise_conversion(checkpoint, "cast the file", "--dtype", targets[0])


@check(
    ReleaseCandidate,
    Rule(
        code="CK853",
        name="release-too-large",
        level=Level.ERROR,
        summary="the release has {nbytes:,} bytes, and the policy allows {most} ({limit:,} bytes)",
        why=(
            "Everybody who downloads the release pays for its size: optimizer state, a wider "
            "dtype, views that keep their whole storage."
        ),
        fix=(
            'What takes the space: {command}. If all of it is needed: max-size = "{nbytes} B" in '
            "[tool.ckptool.require]."
        ),
        general_command="ckptool inspect FILE --sort size",
        example='# max-size = "1 MB"\ntorch.save({"weight": torch.ones(1000, 1000)}, "model.pth")',
    ),
)
def find_oversized_release(release: ReleaseCandidate) -> Iterator[RuleHit]:
    max_size, nbytes = release.requirements.max_size, release.checkpoint.nbytes
    if max_size is not None and nbytes > parse_size(max_size):
        command = f"ckptool inspect {quote_path(str(release.checkpoint.path))} --sort size"
        yield hit("", nbytes=nbytes, most=max_size, limit=parse_size(max_size), command=command)


@check(
    ReleaseCandidate,
    Rule(
        code="CK854",
        name="not-safetensors",
        level=Level.ERROR,
        summary="the release is {container}, and the policy asks for safetensors",
        why="A pickle can run code when it is loaded; safetensors stores only tensors.",
        fix="{command}",
        general_command=CONVERT,
        example='# safetensors = true\ntorch.save(model.state_dict(), "model.pth")',
    ),
)
def find_non_safetensors_release(release: ReleaseCandidate) -> Iterator[RuleHit]:
    checkpoint = release.checkpoint
    safe_containers = {Container.SAFETENSORS, Container.SHARDED_SAFETENSORS}
    if release.requirements.safetensors and checkpoint.container not in safe_containers:
        command = format_convert_command(checkpoint, suffix=".safetensors")
        yield hit("", container=str(checkpoint.container), command=command)


@check(
    ReleaseCandidate,
    Rule(
        code="CK855",
        name="global-not-allowed",
        level=Level.ERROR,
        summary="the pickle of the release references {name}{at}, which the policy does not allow",
        why=(
            "The globals that a pickle references are imported and called when it is loaded "
            "without weights_only=True."
        ),
        fix=(
            "Save it without that object, or add {name} to `globals` in [tool.ckptool.require]."
            "{conversion}"
        ),
        example=(
            '# globals = ["datetime.date"]\n'
            'torch.save({"model": model.state_dict(), "args": argparse.Namespace()}, "model.pth")'
        ),
    ),
)
def find_forbidden_globals(release: ReleaseCandidate) -> Iterator[RuleHit]:
    allowed_globals = release.requirements.globals
    if allowed_globals is None:
        return
    places_by_name = {
        use.qualified_name: use.at
        for use in reversed(release.checkpoint.globals)
        if use.safety is not Safety.SAFE
    }
    for name in sorted(places_by_name, key=natural_sort_key):
        if name not in allowed_globals:
            at_clause = f" at `{places_by_name[name]}`" if places_by_name[name] else ""
            conversion = advise_conversion(release.checkpoint, "write a file without it")
            yield hit(name, name=name, at=at_clause, conversion=conversion)


@check(
    ReleaseCandidate,
    Rule(
        code="CK856",
        name="required-verification",
        level=Level.ERROR,
        summary="the policy requires {step} to pass, and it did not",
        detail="{reason}",
        why="A check that was skipped or inconclusive proves nothing.",
        fix=(
            "Give the gate what the check needs: {command}; or change `verify` and `device` in "
            "[tool.ckptool.require]."
        ),
        general_advice=(
            "Give the gate what the check needs (a module, --input, a device), or change "
            "`verify` and `device` in [tool.ckptool.require]."
        ),
        example=(
            '# verify = ["forward"], and no --input says what forward takes\n'
            'ckptool.gate("model.pth", module="package.module:Net")'
        ),
    ),
)
def find_failed_levels(release: ReleaseCandidate) -> Iterator[RuleHit]:
    command = format_repeated_command("--input", "DTYPE[SHAPE]")
    command = command or "a module, --input DTYPE[SHAPE], a device"
    for level_name, reason in release.level_failures.items():
        if reason:
            yield hit(level_name, step=level_name, reason=reason, command=command)


@check(
    ReleaseCandidate,
    Rule(
        code="CK329",
        name="requirement-not-checked",
        level=Level.ERROR,
        summary="`{key}` is required and was not checked",
        detail="{reason}",
        why=("A release that passes because nothing was checked may not meet the policy."),
        fix=(
            "Name the module, here or in [[tool.ckptool.models]]: {command}. Or take the "
            "requirement out of the policy, for single files in [[tool.ckptool.paths]]."
        ),
        general_advice=(
            "Name the module with -m or in [[tool.ckptool.models]]; or take the requirement out of "
            "the policy, for single files in [[tool.ckptool.paths]]."
        ),
        example='# strict = true, and no module is named\nckptool.gate("model.safetensors")',
    ),
)
def find_unchecked_requirements(release: ReleaseCandidate) -> Iterator[RuleHit]:
    command = format_repeated_command("-m", UNNAMED_MODULE)
    command = command or f"-m {UNNAMED_MODULE}"
    for skipped in _list_unchecked(release):
        yield hit(skipped.what, reason=skipped.reason, command=command)


@check_other_subject(
    PolicyIssues, "CK329", fix="Correct the entry that asks for it, or take it out of the policy."
)
def find_unchecked_expectations(issues: PolicyIssues) -> Iterator[RuleHit]:
    for skipped in issues.unchecked:
        yield hit(skipped.what, reason=skipped.reason)


def _list_unchecked(release: ReleaseCandidate) -> tuple[Skipped, ...]:
    """Return the requirements that only a module could show to be met, and there is none."""
    if release.diff is not None:
        return release.unchecked
    reason = "no module is named for it, with -m or in [[tool.ckptool.models]]"
    requirements = {
        "strict": release.requirements.strict is True,
        "coverage": release.requirements.coverage is not None,
    }
    required = [Skipped(name, reason) for name, is_required in requirements.items() if is_required]
    return (*required, *release.unchecked)


def _matches_any_glob(name: str, globs: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, glob) for glob in globs)
