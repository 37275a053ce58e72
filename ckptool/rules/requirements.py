"""ReleaseCandidate, PolicyIssues -> hits: unmet and outdated policy entries (CK210, CK85x)."""

import shlex
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Final

from msgspec import Struct

from ckptool.compare import Loading
from ckptool.config import Requirements, Waiver, parse_size
from ckptool.model import Checkpoint, Container
from ckptool.rules.loading import LEAST_COVERAGE
from ckptool.rules.registry import Hit, Level, Rule, also, check, hit

UPKEEP: Final = frozenset({"CK857", "CK858", "CK859"})
"""Codes of the rules that concern the policy and no checkpoint."""


class Release(Struct, frozen=True):
    """A checkpoint and the requirements of the policy that apply to it."""

    checkpoint: Checkpoint
    require: Requirements
    loading: Loading | None = None
    """The checkpoint against its module; None without a module."""
    unmatched: tuple[str, ...] = ()
    """Keys that prevent a strict load and have no failing or waived finding of their own."""
    steps: Mapping[str, str] = {}
    """Required level of a verification -> why it did not pass, "" if it passed."""


class Upkeep(Struct, frozen=True):
    """Entries of a policy and its baseline that are out of date."""

    expired: tuple[Waiver, ...] = ()
    unused: tuple[Waiver, ...] = ()
    vanished: tuple[tuple[str, str, str], ...] = ()
    """Path, code and key of baseline entries that match no finding any more."""


def asked(release: Release) -> frozenset[str]:
    """Return the codes of the policy requirements that apply to this release."""
    require, module = release.require, release.loading is not None
    wanted = {
        "CK851": module and require.strict is not False,
        "CK852": require.dtypes is not None,
        "CK853": require.max_size is not None,
        "CK854": bool(require.safetensors),
        "CK855": require.globals is not None,
        "CK856": bool(require.verify),
    }
    return frozenset(code for code, yes in wanted.items() if yes)


@also(
    Release,
    "CK210",
    message="only {percent}% of the parameters' elements would load, and the policy asks for "
    "{least}%",
    fix="Mend what the other findings name, or lower `coverage` in [tool.ckptool.require].",
)
def coverage_required(release: Release) -> Iterator[Hit]:
    least, met = release.require.coverage, release.loading
    if least is not None and met is not None and LEAST_COVERAGE <= met.coverage < least:
        percent = f"{100 * met.coverage:.4g}"
        yield hit(met.state.at, percent=percent, least=f"{100 * least:.4g}")


@check(
    Release,
    Rule(
        code="CK851",
        name="required-strict-load",
        level=Level.ERROR,
        message="the release does not load strictly: {keys}",
        why="load_state_dict() is strict unless it is told otherwise, so that whoever loads the "
        "release as usual gets an error.",
        fix="Mend the keys as their own findings say (`ckptool migrate`), waive those findings, or "
        "set strict = false in [tool.ckptool.require].",
        example="class Net(nn.Module):  # today's code\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        '        self.register_buffer("mask", torch.ones(3))  # the release was saved without it',
    ),
)
def strict_load(release: Release) -> Iterator[Hit]:
    if release.require.strict is False or not release.unmatched:
        return
    names = [f"`{key}`" for key in release.unmatched[:3]]
    left = len(release.unmatched) - len(names)
    more = f" and {left} more" if left else ""
    count = len(release.unmatched)
    verb = "does" if count == 1 else "do"
    yield hit("", keys=f"{', '.join(names)}{more} {verb} not match the module")


@check(
    Release,
    Rule(
        code="CK852",
        name="forbidden-dtype",
        level=Level.ERROR,
        message="`{key}` is {dtype}; the policy allows {allowed}",
        why="A dtype that was not meant to be released costs memory, or was rounded on the way.",
        fix="Save it as an allowed dtype, or add {dtype} to `dtypes` in [tool.ckptool.require].",
        example='# dtypes = ["bfloat16"]\n'
        'torch.save({"weight": torch.ones(3, dtype=torch.float32)}, "model.pth")',
    ),
)
def forbidden_dtype(release: Release) -> Iterator[Hit]:
    allowed = release.require.dtypes
    if allowed is None:
        return
    for state in release.checkpoint.states:
        for key, tensor in state.tensors.items():
            if not _any_matches(tensor.dtype, allowed):
                place = f"{state.at}.{key}" if state.at else key
                yield hit(place, dtype=tensor.dtype, allowed=", ".join(allowed))


@check(
    Release,
    Rule(
        code="CK853",
        name="release-too-large",
        level=Level.ERROR,
        message="the release has {nbytes:,} bytes, and the policy allows {most} ({limit:,} bytes)",
        why="What is larger than it was meant to be is paid for by everybody who downloads it: "
        "optimizer state, a wider dtype, views that drag their whole storage along.",
        fix="`ckptool inspect` shows what takes the room; or raise `max-size` in "
        "[tool.ckptool.require].",
        example='# max-size = "1 MB"\ntorch.save({"weight": torch.ones(1000, 1000)}, "model.pth")',
    ),
)
def too_large(release: Release) -> Iterator[Hit]:
    most, nbytes = release.require.max_size, release.checkpoint.nbytes
    if most is not None and nbytes > parse_size(most):
        yield hit("", nbytes=nbytes, most=most, limit=parse_size(most))


@check(
    Release,
    Rule(
        code="CK854",
        name="not-safetensors",
        level=Level.ERROR,
        message="the release is {container}, and the policy asks for safetensors",
        why="A pickle can run code when it is loaded; safetensors holds tensors and nothing else.",
        fix="ckptool migrate {path} -o NAME.safetensors",
        example='# safetensors = true\ntorch.save(model.state_dict(), "model.pth")',
    ),
)
def not_safetensors(release: Release) -> Iterator[Hit]:
    checkpoint = release.checkpoint
    safe = {Container.SAFETENSORS, Container.SHARDED_SAFETENSORS}
    if release.require.safetensors and checkpoint.container not in safe:
        yield hit("", container=str(checkpoint.container), path=shlex.quote(str(checkpoint.path)))


@check(
    Release,
    Rule(
        code="CK855",
        name="global-not-allowed",
        level=Level.ERROR,
        message="the release's pickle names {name}{at}, which the policy does not allow",
        why="Whatever a pickle names is imported and called by whoever loads it without "
        "weights_only=True.",
        fix="Save it without that object, or add {name} to `globals` in [tool.ckptool.require].",
        example='# globals = ["torch.*", "collections.OrderedDict"]\n'
        'torch.save({"model": model.state_dict(), "args": argparse.Namespace()}, "model.pth")',
    ),
)
def global_not_allowed(release: Release) -> Iterator[Hit]:
    allowed = release.require.globals
    if allowed is None:
        return
    places = {use.qualified: use.at for use in reversed(release.checkpoint.globals)}
    for name in sorted(places):
        if not _any_matches(name, allowed):
            at = f" at `{places[name]}`" if places[name] else ""
            yield hit(name, name=name, at=at)


@check(
    Release,
    Rule(
        code="CK856",
        name="required-verification",
        level=Level.ERROR,
        message="the policy requires {step} to pass, and it did not: {reason}",
        why="What was skipped or proves nothing is not known to work.",
        fix="Give the gate what it needs (a module, --input, a device), or change `verify` and "
        "`device` in [tool.ckptool.require].",
        example='# verify = ["forward"], and no --input says what forward takes\n'
        'ckptool.gate("model.pth", module="package.module:Net")',
    ),
)
def verification_required(release: Release) -> Iterator[Hit]:
    for step, reason in release.steps.items():
        if reason:
            yield hit(step, step=step, reason=reason)


@check(
    Upkeep,
    Rule(
        code="CK857",
        name="waiver-expired",
        level=Level.ERROR,
        message="the waiver of {key} for `{keys}` in {path} expired on {expires}: it was {reason}",
        why="An expiry is a promise that somebody looks at it again.",
        fix="Mend what it waived and delete it, or give it a new date.",
        example='# expires = 2020-12-31\nckptool.gate("model.pth")',
    ),
)
def waiver_expired(upkeep: Upkeep) -> Iterator[Hit]:
    for one in upkeep.expired:
        yield hit(
            one.rule,
            keys=one.key,
            path=one.path,
            expires=str(one.expires),
            reason=f'"{one.reason}"',
        )


@check(
    Upkeep,
    Rule(
        code="CK858",
        name="waiver-unused",
        level=Level.NOTE,
        message="the waiver of {key} for `{keys}` in {path} waives nothing any more",
        why="A waiver that waives nothing hides the next finding of the same kind.",
        fix="Delete it.",
        example='# rule = "CK301", and no pickle is left\nckptool.gate("model.safetensors")',
    ),
)
def waiver_unused(upkeep: Upkeep) -> Iterator[Hit]:
    for one in upkeep.unused:
        yield hit(one.rule, keys=one.key, path=one.path)


@check(
    Upkeep,
    Rule(
        code="CK859",
        name="baseline-outdated",
        level=Level.NOTE,
        message="the baseline knows {what} in {path}, which is not found any more",
        why="What is mended and stays in the baseline would not be seen if it came back.",
        fix="ckptool gate ... --update-baseline",
        example="# known.json knows CK301 of model.pth, which was saved again without the pickle\n"
        'ckptool.gate("model.pth", baseline="known.json")',
    ),
)
def baseline_outdated(upkeep: Upkeep) -> Iterator[Hit]:
    for path, code, key in upkeep.vanished:
        yield hit(key, what=f"{code} of `{key}`" if key else code, path=path)


def _any_matches(name: str, globs: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, glob) for glob in globs)
