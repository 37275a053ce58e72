"""Public functions, one per command, with the command's options as parameters; import lazily."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ckptool.commands.audit import audit
    from ckptool.commands.convert import convert
    from ckptool.commands.diff import diff
    from ckptool.commands.digest import digest, textconv
    from ckptool.commands.explain import explain
    from ckptool.commands.fix import fix
    from ckptool.commands.gate import effective_policy, gate
    from ckptool.commands.init import init
    from ckptool.commands.inspect import inspect
    from ckptool.commands.install import install, uninstall
    from ckptool.commands.load import load
    from ckptool.commands.lock import lock, lock_all
    from ckptool.commands.merge import merge
    from ckptool.commands.migrate import migrate, migrate_many
    from ckptool.commands.render_text import text
    from ckptool.commands.rule import rule
    from ckptool.commands.run import run
    from ckptool.commands.tensors import tensors
    from ckptool.commands.verify import verify
    from ckptool.commands.watch import watch

__all__ = [
    "audit",
    "convert",
    "diff",
    "digest",
    "effective_policy",
    "explain",
    "fix",
    "gate",
    "init",
    "inspect",
    "install",
    "load",
    "lock",
    "lock_all",
    "merge",
    "migrate",
    "migrate_many",
    "rule",
    "run",
    "tensors",
    "text",
    "textconv",
    "uninstall",
    "verify",
    "watch",
]

_HOMES = {
    "audit": "ckptool.commands.audit",
    "convert": "ckptool.commands.convert",
    "diff": "ckptool.commands.diff",
    "digest": "ckptool.commands.digest",
    "effective_policy": "ckptool.commands.gate",
    "explain": "ckptool.commands.explain",
    "fix": "ckptool.commands.fix",
    "gate": "ckptool.commands.gate",
    "init": "ckptool.commands.init",
    "inspect": "ckptool.commands.inspect",
    "install": "ckptool.commands.install",
    "load": "ckptool.commands.load",
    "lock": "ckptool.commands.lock",
    "lock_all": "ckptool.commands.lock",
    "merge": "ckptool.commands.merge",
    "migrate": "ckptool.commands.migrate",
    "migrate_many": "ckptool.commands.migrate",
    "rule": "ckptool.commands.rule",
    "run": "ckptool.commands.run",
    "tensors": "ckptool.commands.tensors",
    "text": "ckptool.commands.render_text",
    "textconv": "ckptool.commands.digest",
    "uninstall": "ckptool.commands.install",
    "verify": "ckptool.commands.verify",
    "watch": "ckptool.commands.watch",
}


if not TYPE_CHECKING:  # a type checker knows all names, and calls others misspelt

    def __getattr__(name: str) -> Any:
        """Import a function on first access, so that a command imports only what it needs."""
        if name not in _HOMES:
            raise AttributeError(f"module 'ckptool.api' has no attribute {name!r}")
        function = getattr(import_module(_HOMES[name]), name)
        from ckptool.render.progress_bar import is_notebook, with_progress_bar

        return with_progress_bar(function) if is_notebook() else function
