"""Checkpoint files -> DigestReport: compute content digests, or check against a saved one."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptool.commands.sources.checkpoint_paths import (
    PathLike,
    is_live,
    list_paths,
    open_checkpoint_or_stdin,
    require_local_path,
)
from ckptool.commands.sources.live_objects import open_sources
from ckptool.commands.sources.option_checks import reject_unused_options
from ckptool.commands.sources.roles import add_unsaved_tensors
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
from ckptool.model import Checkpoint
from ckptool.phrases import make_printable
from ckptool.policy import Policy
from ckptool.reports.digest import DigestReport, build_digest_check_report, build_digest_report

if TYPE_CHECKING:
    from torch import nn


def digest(
    paths: "PathLike | nn.Module | Mapping[str, Any] | Sequence[PathLike]",
    *,
    at: str | None = None,
    against: PathLike | None = None,
    check: PathLike | None = None,
    roles: Sequence[str] | None = None,
    policy: Policy | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> DigestReport:
    """Compute content digests; independent of container, key order and shard layout.

    A path that cannot be read is reported in `errors`; with `against` it raises.

    Args:
        paths: the checkpoints, exactly one with `against`; or a live module or a state_dict, which
            has the digest of the file that torch.save makes of its state_dict.
        at: dotted place of the state to digest; None digests all states of a file.
        against: a JSON report of this function that the checkpoint must match.
        check: `against` as it was called up to 0.1; deprecated.
        roles: of a live module: the roles of the tensors that are digested, of "parameter",
            "buffer", "non-persistent-buffer" and "attribute"; None for what its state_dict has.
        policy: with `against`: whether a difference fails.
        limits: bounds on the memory and time that reading a file may take.

    Raises:
        ReadError: with `against`, a file cannot be read.
        UsageError: the state does not exist, or there is more than one checkpoint with `against`.
    """
    if check is not None:
        warnings.warn("digest(check=...) is against=... now", DeprecationWarning, stacklevel=2)
        against = check if against is None else against
    if is_live(paths):
        return _digest_live(paths, at, against, roles, policy or Policy(), limits)
    reject_unused_options({"roles=": roles is not None}, "selects of a live module")
    path_list = list_paths(paths)
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


def _digest_live(
    live_object: Any,
    at: str | None,
    against: PathLike | None,
    roles: Sequence[str] | None,
    policy: Policy,
    limits: Limits,
) -> DigestReport:
    with open_sources((live_object,), limits, roles) as (described,):
        checkpoint = described if roles is None else add_unsaved_tensors(described)
        if against is None:
            return build_digest_report((digest_checkpoint(checkpoint, at),), ())
        return _compare_with_saved(checkpoint, at, require_local_path(against), policy)


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
    return _compare_with_saved(open_checkpoint_or_stdin(paths[0], limits), at, check, policy)


def _compare_with_saved(
    checkpoint: Checkpoint, at: str | None, check: Path, policy: Policy
) -> DigestReport:
    old_digest = read_saved_digest(check, checkpoint.path)
    new_digest = digest_checkpoint(
        checkpoint, locate_saved_state(old_digest, checkpoint) if at is None else at
    )
    return build_digest_check_report(
        new_digest, old_digest, str(check), compare_digests(old_digest, new_digest), policy
    )
