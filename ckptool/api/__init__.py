"""Public functions, one per command, with the command's options as parameters; import lazily."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ckptool.api.checking import audit, verify
    from ckptool.api.comparing import merge
    from ckptool.api.describing import inspect
    from ckptool.api.digesting import digest, textconv
    from ckptool.api.explaining import rule
    from ckptool.api.gating import effective_policy, gate
    from ckptool.api.locking import lock
    from ckptool.api.migrating import migrate
    from ckptool.api.reading import diff
    from ckptool.api.showing import text
    from ckptool.api.training import watch

__all__ = [
    "audit",
    "diff",
    "digest",
    "effective_policy",
    "gate",
    "inspect",
    "lock",
    "merge",
    "migrate",
    "rule",
    "text",
    "textconv",
    "verify",
    "watch",
]

_HOMES = {
    "audit": "ckptool.api.checking",
    "diff": "ckptool.api.reading",
    "digest": "ckptool.api.digesting",
    "effective_policy": "ckptool.api.gating",
    "gate": "ckptool.api.gating",
    "inspect": "ckptool.api.describing",
    "lock": "ckptool.api.locking",
    "merge": "ckptool.api.comparing",
    "migrate": "ckptool.api.migrating",
    "rule": "ckptool.api.explaining",
    "text": "ckptool.api.showing",
    "textconv": "ckptool.api.digesting",
    "verify": "ckptool.api.checking",
    "watch": "ckptool.api.training",
}


def __getattr__(name: str) -> Any:
    """Import a function on first access, so that a command imports only what it needs."""
    if name not in _HOMES:
        raise AttributeError(f"module 'ckptool.api' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
