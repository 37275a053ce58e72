"""Checkpoint files -> DigestReport: compute content digests, or check against a saved one."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from ckptool import report
from ckptool.api.target import PathLike, opened
from ckptool.digests import (
    Digest,
    content_of_file,
    differences,
    digested,
    lines,
    place_of,
    saved_digest,
)
from ckptool.errors import ReadError, UsageError
from ckptool.formats.limits import DEFAULT, Limits
from ckptool.locations import locate
from ckptool.policy import Policy
from ckptool.render.text import printable
from ckptool.reporting.digesting import checked, digests


def digest(
    paths: PathLike | Sequence[PathLike],
    *,
    at: str | None = None,
    check: str | Path | None = None,
    policy: Policy | None = None,
    limits: Limits = DEFAULT,
) -> report.DigestReport:
    """Compute content digests; independent of container, key order and shard layout.

    A path that cannot be read is reported in `errors`; with `check` it raises.

    Args:
        paths: the checkpoints; exactly one with `check`.
        at: dotted place of the state to digest; None digests all states of a file.
        check: a JSON report of this function that the checkpoint must match.
        policy: with `check`: whether a difference fails.
        limits: bounds on the memory and time that reading a file may take.

    Raises:
        ReadError: with `check`, a file cannot be read.
        UsageError: the state does not exist, or there is more than one checkpoint to check.
    """
    together = [paths] if isinstance(paths, PathLike) else list(paths)
    if check is not None:
        return _checked(together, at, Path(check), policy or Policy(), limits)
    found: list[Digest] = []
    errors: list[str] = []
    for path in together:
        try:
            found.append(digested(opened(path, limits), at))
        except ReadError as error:
            errors.append(str(error))
    return digests(tuple(found), tuple(errors))


def textconv(path: PathLike, *, at: str | None = None, limits: Limits = DEFAULT) -> str:
    """Return a checkpoint as lines for `git diff`; an unreadable file gives one "unreadable" line.

    Git aborts the whole diff if its textconv fails, so this does not raise for invalid content.
    """
    try:
        return _text(lines(digested(opened(path, limits), at)))
    except ReadError as error:
        return _text([f"unreadable {error.reason}; {content_of_file(locate(path))}"])
    except UsageError as error:
        return _text([f"unreadable {error}"])


def _text(found: Iterable[str]) -> str:
    return "\n".join(map(printable, found))


def _checked(
    paths: Sequence[PathLike], at: str | None, check: Path, policy: Policy, limits: Limits
) -> report.DigestReport:
    if len(paths) != 1:
        raise UsageError("--check compares one checkpoint: name one PATH")
    saved = saved_digest(check, locate(paths[0]))
    checkpoint = opened(paths[0], limits)
    now = digested(checkpoint, place_of(saved, checkpoint) if at is None else at)
    return checked(now, saved, str(check), differences(saved, now), policy)
