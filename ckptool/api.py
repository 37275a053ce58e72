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
    from ckptool.commands.hooks.install import install, uninstall
    from ckptool.commands.init import init
    from ckptool.commands.inspect import inspect
    from ckptool.commands.load import load, tensors
    from ckptool.commands.lock import lock, lock_all
    from ckptool.commands.merge import merge
    from ckptool.commands.migrate import migrate, migrate_many
    from ckptool.commands.render_text import text
    from ckptool.commands.revisions.check import check
    from ckptool.commands.revisions.current import current
    from ckptool.commands.revisions.downgrade import downgrade
    from ckptool.commands.revisions.history import history
    from ckptool.commands.revisions.revision import revision
    from ckptool.commands.revisions.upgrade import upgrade
    from ckptool.commands.rule import rule
    from ckptool.commands.run import run
    from ckptool.commands.verify import verify
    from ckptool.commands.watch import watch

__all__ = [
    "audit",
    "check",
    "convert",
    "current",
    "diff",
    "digest",
    "downgrade",
    "effective_policy",
    "explain",
    "fix",
    "gate",
    "history",
    "init",
    "inspect",
    "install",
    "load",
    "lock",
    "lock_all",
    "merge",
    "migrate",
    "migrate_many",
    "revision",
    "rule",
    "run",
    "tensors",
    "text",
    "textconv",
    "uninstall",
    "upgrade",
    "verify",
    "watch",
]

_HOMES = {
    "audit": "ckptool.commands.audit",
    "check": "ckptool.commands.revisions.check",
    "convert": "ckptool.commands.convert",
    "current": "ckptool.commands.revisions.current",
    "diff": "ckptool.commands.diff",
    "digest": "ckptool.commands.digest",
    "downgrade": "ckptool.commands.revisions.downgrade",
    "effective_policy": "ckptool.commands.gate",
    "explain": "ckptool.commands.explain",
    "fix": "ckptool.commands.fix",
    "gate": "ckptool.commands.gate",
    "history": "ckptool.commands.revisions.history",
    "init": "ckptool.commands.init",
    "inspect": "ckptool.commands.inspect",
    "install": "ckptool.commands.hooks.install",
    "load": "ckptool.commands.load",
    "lock": "ckptool.commands.lock",
    "lock_all": "ckptool.commands.lock",
    "merge": "ckptool.commands.merge",
    "migrate": "ckptool.commands.migrate",
    "migrate_many": "ckptool.commands.migrate",
    "revision": "ckptool.commands.revisions.revision",
    "rule": "ckptool.commands.rule",
    "run": "ckptool.commands.run",
    "tensors": "ckptool.commands.load",
    "text": "ckptool.commands.render_text",
    "textconv": "ckptool.commands.digest",
    "uninstall": "ckptool.commands.hooks.install",
    "upgrade": "ckptool.commands.revisions.upgrade",
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
