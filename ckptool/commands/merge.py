"""Merge the shards of a comparison made on several machines."""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from ckptool.commands.comparison.diff_files import judge_diff
from ckptool.compare.diff_shards import (
    DiffShard,
    decode_shard,
    merge_shards,
)
from ckptool.errors import UsageError, describe_os_error
from ckptool.locations import read_small_file
from ckptool.policy import Policy
from ckptool.reports.diff_files import DiffFilesReport


def merge(
    parts: str | Path | Sequence[str | Path],
    *,
    explain: str | None = None,
    policy: Policy | None = None,
) -> DiffFilesReport:
    """Merge the shards of a comparison; the report equals that of a single complete run.

    Args:
        parts: the JSON files that `diff` with `shard` wrote; all of them, in any order.
        explain: a key to explain in full.
        policy: reported findings, and the level from which they fail.

    Raises:
        UsageError: a file is not a shard, or a shard is missing, duplicated or of other files.
    """
    paths = [parts] if isinstance(parts, str | Path) else list(parts)
    if not paths:
        raise UsageError("nothing to merge: give the files that `diff --shard` wrote")
    diff_shards = {str(path): _read_shard(Path(path)) for path in paths}
    if len(diff_shards) < len(paths):
        raise UsageError("a part was given twice")
    return judge_diff(merge_shards(diff_shards), policy or Policy(), explain)


def _read_shard(path: Path) -> DiffShard:
    if path.is_dir():
        raise UsageError(f"{path}: is a folder: give the files that `diff --shard` wrote")
    try:
        text = read_small_file(path)
    except OSError as error:
        raise UsageError(f"{path}: {describe_os_error(error)}") from error
    try:
        data = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        reason = "not a part of a diff, which ckptool diff OLD NEW --shard 1/2 writes"
        raise UsageError(f"{path}: {reason}: not valid JSON: {error}") from error
    evidence = data.get("evidence") if isinstance(data, dict) else None
    return decode_shard(str(path), evidence)
