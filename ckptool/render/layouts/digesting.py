"""DigestReport -> blocks."""

from collections.abc import Iterator
from typing import Final

from ckptool.render import Style
from ckptool.render.blocks import Block, Lines, Verdict, grid
from ckptool.render.text import count
from ckptool.report import CheckpointDigestReport, DigestCheckReport, DigestReport

_SHOWN: Final = 16
"""Characters shown of a tensor's digest; -v and JSON give all."""


def digests(report: DigestReport, style: Style) -> Iterator[Block]:
    if report.check is not None:
        yield Verdict(verdict(report), bool(report.exit_code))
        if style.verbosity >= 0:
            yield from _check(report.check, style)
        return
    for one in report.checkpoints:
        yield Verdict(f"{one.digest}  {one.path}", failed=False)
        if style.verbosity >= 0:
            yield from _checkpoint(one, report.format, style)


def verdict(report: DigestReport) -> str:
    """Return the verdict of `digest --check`, "" without --check."""
    return "" if report.check is None else _words(report.checkpoints[0].path, report.check)


def _checkpoint(one: CheckpointDigestReport, form: str, style: Style) -> Iterator[Block]:
    place = "" if one.at == "*" else f" at `{one.at or '.'}`"
    yield Lines((f"{form}: the content of {count(len(one.tensors), 'tensor')}{place}",))
    shown = None if style.verbosity > 0 else _SHOWN
    rows = [(t.key, t.dtype, str(list(t.shape)), t.digest[:shown] or "-") for t in one.tensors]
    yield grid("Tensors", ("key", "dtype", "shape", "digest"), rows, style)


def _words(path: str, check: DigestCheckReport) -> str:
    counts = (
        (len(check.changed), "changed"),
        (len(check.missing), "missing"),
        (len(check.added), "added"),
    )
    differ = ", ".join(f"{n} {word}" for n, word in counts if n)
    if differ:
        return f"{path} differs from {check.saved}: {differ}"
    if check.untold or check.digest.startswith("partial:"):
        told = count(len(check.untold), "tensor") if check.untold else "a part"
        return f"{path}: not proved to be what {check.saved} names: {told} could not be digested"
    return f"{path} is what {check.saved} names"


def _check(check: DigestCheckReport, style: Style) -> Iterator[Block]:
    named = (("Changed", check.changed), ("Missing", check.missing), ("Added", check.added))
    for title, keys in (*named, ("Not compared", check.untold)):
        if keys:
            yield grid(title, ("key",), [(key,) for key in keys], style)
