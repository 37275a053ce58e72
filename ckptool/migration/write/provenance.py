"""Source, plan and digests -> provenance record of the result, as JSON."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from msgspec import Struct

from ckptool.errors import WriteError
from ckptool.formats.files.atomic import check_target
from ckptool.locations import mask_credentials
from ckptool.migration.plan.key_operations import InjectTensor
from ckptool.migration.plan.plan_file import Plan, encode_plan
from ckptool.versions import get_installed_version

PROVENANCE_KEY: Final = "ckptool.provenance"
"""Key of the record in safetensors' `__metadata__`."""
RECORD_SUFFIX: Final = ".ckptool.json"
"""Suffix of the record file beside a .pth."""
_RECORD_START: Final = b'{"tool": "ckptool '
UNKNOWN_DIGEST: Final = "0" * 64
"""Placeholder for a digest that is not computed yet, of the same length."""


class MigrationDigests(Struct, frozen=True):
    """Content digests of the source's and the result's state_dict (see `content_digest`)."""

    source: str = UNKNOWN_DIGEST
    result: str = UNKNOWN_DIGEST


def format_provenance(name: str, container: str, plan: Plan, digests: MigrationDigests) -> str:
    """Return the record as JSON. It has no paths, times or credentials: runs are reproducible."""
    values = {op.key: op.source for op in plan.ops if isinstance(op, InjectTensor)}
    text = json.dumps(
        {
            "tool": f"ckptool {get_installed_version('ckptool')}",
            "source": {"name": name, "container": container, "digest": digests.source},
            "plan": encode_plan(plan),
            **({"undoes": True} if plan.undoes else {}),
            "values": values,
            "result": {"digest": digests.result},
        },
        ensure_ascii=True,
    )
    return mask_credentials(text)


def check_record_target(target: Path, inputs: Sequence[Path], *, force: bool) -> None:
    """Reject a `target` whose record file would replace an input, a folder or a foreign file.

    Raises:
        WriteError: it would; without `force` also where the file is no record of ckptool.
    """
    path = target.with_name(target.name + RECORD_SUFFIX)
    try:
        is_own_record = path.is_file() and _is_record(path)
        check_target(path, inputs, force=force or is_own_record, folder=False)
    except WriteError as error:
        hint = "the provenance record is written there, unless --no-provenance is given"
        raise WriteError(f"{error}; {hint}") from error


def _is_record(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_RECORD_START)) == _RECORD_START


def is_applied(plan: Plan, text: str | None) -> bool:
    """Return whether the record `text` (None: no record) has this plan; False if it is empty."""
    try:
        record = json.loads(text or "null")
    except (ValueError, RecursionError):
        return False
    if not plan.ops or not isinstance(record, dict):
        return False
    return record.get("plan") == encode_plan(plan) and record.get("undoes", False) == plan.undoes
