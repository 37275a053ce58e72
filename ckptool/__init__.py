"""Inspect, compare, verify and migrate PyTorch checkpoints without executing them."""

# Nothing is imported here: an interrupt before the command's own handler would be a traceback.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from ckptool.api import (
        audit,
        check,
        convert,
        current,
        diff,
        digest,
        downgrade,
        explain,
        fix,
        gate,
        history,
        init,
        inspect,
        install,
        load,
        lock,
        merge,
        migrate,
        revision,
        rule,
        run,
        tensors,
        text,
        uninstall,
        upgrade,
        verify,
        watch,
    )
    from ckptool.errors import CkptoolError, LoadError, LoadWarning
    from ckptool.formats import open_checkpoint
    from ckptool.policy import Policy
    from ckptool.rules import Level

__all__ = [
    "CkptoolError",
    "Level",
    "LoadError",
    "LoadWarning",
    "Policy",
    "audit",
    "check",
    "convert",
    "current",
    "diff",
    "digest",
    "downgrade",
    "explain",
    "fix",
    "gate",
    "history",
    "init",
    "inspect",
    "install",
    "load",
    "lock",
    "merge",
    "migrate",
    "open_checkpoint",
    "revision",
    "rule",
    "run",
    "tensors",
    "text",
    "uninstall",
    "upgrade",
    "verify",
    "watch",
]

_HOMES = {
    "CkptoolError": "ckptool.errors",
    "Level": "ckptool.rules",
    "LoadError": "ckptool.errors",
    "LoadWarning": "ckptool.errors",
    "Policy": "ckptool.policy",
    "open_checkpoint": "ckptool.formats",
}
"""Module of each public name that is not a function of a command: those are in `ckptool.api`."""


def __dir__() -> list[str]:
    """List the public names before they are imported, for completion in notebooks."""
    return sorted({*globals(), *__all__})


if not TYPE_CHECKING:  # a type checker knows all names, and calls others misspelt

    def __getattr__(name: str) -> object:
        """Import a public name on first access, so that `import ckptool` is fast."""
        from importlib import import_module

        if name not in __all__:
            from difflib import get_close_matches

            close = get_close_matches(name, __all__, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise AttributeError(f"module 'ckptool' has no attribute {name!r}{hint}")
        return getattr(import_module(_HOMES.get(name, "ckptool.api")), name)
