"""Path of a checkpoint file -> the files beside it that other ranks of the same run wrote."""

import re
from pathlib import Path
from typing import Final

from ckptool.errors import ReadError
from ckptool.formats.files.source import list_names
from ckptool.formats.strict_json import quote_text
from ckptool.locations import Location
from ckptool.model import ContainerIssue, IssueKind
from ckptool.phrases import join_limited

_FILE_OF_RANK: Final = re.compile(
    r"(?P<before>consolidated\.|(?:.*_)?mp_rank_|zero_pp_rank_|(?:.*[-_.])?(?:tp_?)?rank[-_.]?)"
    r"(?P<rank>\d{1,5})"
    r"(?P<after>(?:[-_.].*)?)"
)
"""Names that Meta's, DeepSpeed's and hand-written loops give: consolidated.00.pth,
mp_rank_00_model_states.pt, model_rank0.pt."""
_FOLDER_OF_RANK: Final = re.compile(r"(?P<before>mp_rank_)(?P<rank>\d{2,5})(?P<after>(?:_\d{3})*)")
"""Folders of Megatron, each with one model_optim_rng.pt: mp_rank_00, mp_rank_01_003."""
_MAX_LISTED: Final = 3


def find_rank_files(path: Location) -> tuple[ContainerIssue, ...]:
    """Return the issue that `path` is the file of one rank; () if no other rank's is beside it.

    Remote folders are not listed.
    """
    if not isinstance(path, Path):
        return ()
    others = _list_other_ranks(_FILE_OF_RANK, path) or [
        f"{name}/{path.name}"
        for name in _list_other_ranks(_FOLDER_OF_RANK, path.absolute().parent)
        if (path.absolute().parent.parent / name / path.name).exists()
    ]
    if not others:
        return ()
    facts = {"count": str(len(others) + 1), "others": join_limited(others, _MAX_LISTED, quote_text)}
    return (ContainerIssue(IssueKind.RANK_FILE, path.name, facts),)


def _list_other_ranks(pattern: re.Pattern[str], path: Path) -> list[str]:
    """Return the names beside `path` that differ from its own in the number of the rank alone."""
    match = pattern.fullmatch(path.name)
    if match is None:
        return []
    try:
        names = list_names(path.parent)
    except ReadError:
        return []
    same_run = re.compile(
        rf"{re.escape(match['before'])}\d{{1,5}}{re.escape(match['after'])}", re.ASCII
    )
    return [name for name in names if name != path.name and same_run.fullmatch(name)]
