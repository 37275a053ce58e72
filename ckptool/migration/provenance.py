"""Source, plan and digests -> provenance record of the result, as JSON."""

import json
from typing import Final

from msgspec import Struct

from ckptool.locations import masked
from ckptool.migration.ops import Inject
from ckptool.migration.plan import Plan, to_data
from ckptool.versions import version_of

KEY: Final = "ckptool.provenance"
"""Key of the record in safetensors' `__metadata__`."""
SUFFIX: Final = ".ckptool.json"
"""Suffix of the record file beside a .pth."""
UNKNOWN: Final = "0" * 64
"""Placeholder for a digest that is not computed yet, of the same length."""


class Digests(Struct, frozen=True):
    """Content digests of the source's and the result's state_dict (see `content_digest`)."""

    source: str = UNKNOWN
    result: str = UNKNOWN


def record(name: str, container: str, plan: Plan, digests: Digests) -> str:
    """Return the record as JSON. It has no paths, times or credentials: runs are reproducible."""
    values = {op.key: op.source for op in plan.ops if isinstance(op, Inject)}
    text = json.dumps(
        {
            "tool": f"ckptool {version_of('ckptool')}",
            "source": {"name": name, "container": container, "digest": digests.source},
            "plan": to_data(plan),
            **({"undoes": True} if plan.undoes else {}),
            "values": values,
            "result": {"digest": digests.result},
        },
        ensure_ascii=True,
    )
    return masked(text)


def applied(plan: Plan, text: str | None) -> bool:
    """Return whether the record `text` (None: no record) has this plan; False if it is empty."""
    try:
        found = json.loads(text or "null")
    except (ValueError, RecursionError):
        return False
    if not plan.ops or not isinstance(found, dict):
        return False
    return found.get("plan") == to_data(plan) and found.get("undoes", False) == plan.undoes
