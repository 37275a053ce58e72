"""Checkpoint files -> DigestReport: compute content digests, or check against a saved one."""

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

from ckptool.commands.target import PathLike, open_checkpoint_or_stdin, require_local_path
from ckptool.compare.digest import (
    CheckpointDigest,
    compare_digests,
    describe_file_content,
    digest_checkpoint,
    locate_saved_state,
    read_saved_digest,
    textconv_lines,
)
from ckptool.errors import ReadError, UsageError
from ckptool.formats.limits import DEFAULT_LIMITS, Limits
from ckptool.locations import parse_location
from ckptool.phrases import make_printable
from ckptool.policy import Policy
from ckptool.reports.digest import DigestReport, build_digest_check_report, build_digest_report


def digest(
    paths: PathLike | Sequence[PathLike],
    *,
    at: str | None = None,
    against: PathLike | None = None,
    check: PathLike | None = None,
    policy: Policy | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> DigestReport:
    """Compute content digests; independent of container, key order and shard layout.

    A path that cannot be read is reported in `errors`; with `against` it raises.

    Args:
        paths: the checkpoints; exactly one with `against`.
        at: dotted place of the state to digest; None digests all states of a file.
        against: a JSON report of this function that the checkpoint must match.
        check: `against` as it was called up to 0.1; deprecated.
        policy: with `against`: whether a difference fails.
        limits: bounds on the memory and time that reading a file may take.

    Raises:
        ReadError: with `against`, a file cannot be read.
        UsageError: the state does not exist, or there is more than one checkpoint with `against`.
    """
    path_list = [paths] if isinstance(paths, PathLike) else list(paths)
    if check is not None:
        warnings.warn("digest(check=...) is against=... now", DeprecationWarning, stacklevel=2)
        against = check if against is None else against
    if against is not None:
        return _check_digest(path_list, at, require_local_path(against), policy or Policy(), limits)
    checkpoint_digests: list[CheckpointDigest] = []
    errors: list[ReadError] = []
    for path in path_list:
        try:
            checkpoint_digests.append(digest_checkpoint(open_checkpoint_or_stdin(path, limits), at))
        except ReadError as error:
            errors.append(error)
    return build_digest_report(tuple(checkpoint_digests), errors)


def textconv(path: PathLike, *, at: str | None = None, limits: Limits = DEFAULT_LIMITS) -> str:
    """Return a checkpoint as lines for `git diff`; an unreadable file gives one "unreadable" line.

    Git aborts the whole diff if its textconv fails, so this does not raise for invalid content.
    """
    try:
        return _join_lines(
            textconv_lines(digest_checkpoint(open_checkpoint_or_stdin(path, limits), at))
        )
    except ReadError as error:
        return _join_lines(
            [f"unreadable {error.reason}; {describe_file_content(parse_location(path))}"]
        )
    except UsageError as error:
        return _join_lines([f"unreadable {error}"])


def _join_lines(text_lines: Iterable[str]) -> str:
    return "\n".join(map(make_printable, text_lines))


def _check_digest(
    paths: Sequence[PathLike], at: str | None, check: Path, policy: Policy, limits: Limits
) -> DigestReport:
    if len(paths) != 1:
        raise UsageError("--against compares one checkpoint: give one PATH")
    old_digest = read_saved_digest(check, parse_location(paths[0]))
    checkpoint = open_checkpoint_or_stdin(paths[0], limits)
    new_digest = digest_checkpoint(
        checkpoint, locate_saved_state(old_digest, checkpoint) if at is None else at
    )
    return build_digest_check_report(
        new_digest, old_digest, str(check), compare_digests(old_digest, new_digest), policy
    )
