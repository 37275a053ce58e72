"""One function per command, with the same words as its options; the CLI adds only printing."""

from ckptool.api.checking import audit, verify
from ckptool.api.comparing import merge
from ckptool.api.digesting import digest, textconv
from ckptool.api.explaining import rule
from ckptool.api.gating import effective_policy, gate
from ckptool.api.locking import lock
from ckptool.api.migrating import migrate
from ckptool.api.reading import diff, inspect
from ckptool.api.showing import text
from ckptool.api.training import watch
from ckptool.valued import valued

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
    "valued",
    "verify",
    "watch",
]
