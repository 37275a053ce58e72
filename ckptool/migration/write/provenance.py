"""Source, plan and digests <-> provenance record of the result, as JSON."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from msgspec import Struct

from ckptool.errors import ReadError, WriteError
from ckptool.formats.files.atomic import check_target
from ckptool.formats.files.source import open_source
from ckptool.locations import mask_credentials
from ckptool.migration.plan.key_operations import InjectTensor
from ckptool.migration.plan.plan_file import Plan, encode_plan
from ckptool.model import Checkpoint
from ckptool.versions import get_installed_version

PROVENANCE_KEY: Final = "ckptool.provenance"
"""Key of the record in safetensors' `__metadata__`."""
_RECORD_SUFFIX: Final = ".ckptool.json"
"""Suffix of the record file beside a .pth."""
_RECORD_START: Final = b'{"tool": "ckptool '
_MAX_RECORD_NBYTES: Final = 16 << 20
"""Maximum size in bytes of the record file beside a .pth."""
UNKNOWN_DIGEST: Final = "0" * 64
"""Placeholder for a digest that is not computed yet, of the same length."""


class MigrationDigests(Struct, frozen=True):
    """Content digests of the source's and the result's state_dict (see `content_digest`)."""

    source: str = UNKNOWN_DIGEST
    result: str = UNKNOWN_DIGEST


class RevisionStamp(Struct, frozen=True):
    """Place of a file in the chain of migrations of a project."""

    project: str
    revision: str
    """Identifier of the revision that the file is at."""
    source_revision: str = ""
    """Identifier of the revision that its source was at, "" if it has none."""


class ProvenanceRecord(Struct, frozen=True):
    """What is read of the record of a file."""

    stamp: RevisionStamp | None
    source_digest: str
    """Content digest of the state_dict that it was made of, "" if it is not recorded."""
    result_digest: str
    is_beside: bool
    """Whether it is a file next to the checkpoint, which may have been replaced since."""


def format_provenance(
    name: str,
    container: str,
    plan: Plan,
    digests: MigrationDigests,
    stamp: RevisionStamp | None = None,
) -> str:
    """Return the record as JSON. It has no paths, times or credentials: runs are reproducible."""
    values = {op.key: op.source for op in plan.ops if isinstance(op, InjectTensor)}
    text = json.dumps(
        {
            "tool": f"ckptool {get_installed_version('ckptool')}",
            "source": {"name": name, "container": container, "digest": digests.source},
            "plan": encode_plan(plan),
            **({"undoes": True} if plan.undoes else {}),
            "values": values,
            **({} if stamp is None else {"revision": _encode_stamp(stamp)}),
            "result": {"digest": digests.result},
        },
        ensure_ascii=True,
    )
    return mask_credentials(text)


def find_record(target: Path) -> Path:
    """Return the path of the record of a file that does not hold it itself."""
    return target.with_name(target.name + _RECORD_SUFFIX)


def check_record_target(target: Path, inputs: Sequence[Path], *, force: bool) -> None:
    """Reject a `target` whose record file would replace an input, a folder or a foreign file.

    Raises:
        WriteError: it would; without `force` also where the file is no record of ckptool.
    """
    path = find_record(target)
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
    record = _decode_object(text)
    if not plan.ops or not record:
        return False
    return record.get("plan") == encode_plan(plan) and record.get("undoes", False) == plan.undoes


def read_provenance_text(checkpoint: Checkpoint) -> str | None:
    """Return the record in a checkpoint's metadata, else that of the file beside it, else None."""
    path = checkpoint.path
    try:
        if record := checkpoint.metadata.get(PROVENANCE_KEY):
            return record
        with open_source(path.with_name(path.name + _RECORD_SUFFIX)) as source:
            return source.read_head(_MAX_RECORD_NBYTES).decode()
    except (ReadError, UnicodeDecodeError):
        return None


def read_provenance(checkpoint: Checkpoint) -> ProvenanceRecord | None:
    """Return the record of a checkpoint; None without a readable one."""
    record = _decode_object(read_provenance_text(checkpoint))
    if not record:
        return None
    return ProvenanceRecord(
        _decode_stamp(_get_object(record, "revision")),
        _get_text(_get_object(record, "source"), "digest"),
        _get_text(_get_object(record, "result"), "digest"),
        is_beside=PROVENANCE_KEY not in checkpoint.metadata,
    )


def _encode_stamp(stamp: RevisionStamp) -> dict[str, str]:
    values = {"project": stamp.project, "id": stamp.revision, "from": stamp.source_revision}
    return {name: value for name, value in values.items() if value}


def _decode_stamp(data: dict[str, Any]) -> RevisionStamp | None:
    project, revision = _get_text(data, "project"), _get_text(data, "id")
    if not (project and revision):
        return None
    return RevisionStamp(project, revision, _get_text(data, "from"))


def _decode_object(text: str | None) -> dict[str, Any]:
    """Return a JSON object; {} if `text` is none."""
    try:
        record = json.loads(text or "null")
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def _get_object(data: dict[str, Any], name: str) -> dict[str, Any]:
    value = data.get(name)
    return value if isinstance(value, dict) else {}


def _get_text(data: dict[str, Any], name: str) -> str:
    """Return a short text of an untrusted record, "" if it is none."""
    value = data.get(name)
    return value[:200] if isinstance(value, str) else ""
