"""What was read and what was written -> the record that goes with the result."""

import json
from typing import Final

from msgspec import Struct

from ckptool.locations import masked
from ckptool.migration.ops import Inject
from ckptool.migration.plan import Plan, to_data
from ckptool.versions import version_of

KEY: Final = "ckptool.provenance"
"""Where safetensors' `__metadata__` has it."""
SUFFIX: Final = ".ckptool.json"
"""Of the file beside a .pth."""
UNKNOWN: Final = "0" * 64
"""A digest that is not known yet; as long as one that is."""


class Digests(Struct, frozen=True):
    """Of the state's content, whatever the container: see `digests.content_digest`."""

    source: str = UNKNOWN
    result: str = UNKNOWN


def record(name: str, container: str, plan: Plan, digests: Digests) -> str:
    """Return the record as JSON: no paths, times or passwords; two runs give the same bytes."""
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
    """Tell whether a record names this very plan."""
    try:
        found = json.loads(text or "null")
    except (ValueError, RecursionError):
        return False
    if not plan.ops or not isinstance(found, dict):
        return False
    return found.get("plan") == to_data(plan) and found.get("undoes", False) == plan.undoes
