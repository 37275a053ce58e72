"""Commands that fixes of several rules name."""

from ckptool.compare.module_diff import ModuleDiff
from ckptool.phrases import quote_shell


def format_migrate_command(diff: ModuleDiff) -> str:
    """Return the `ckptool migrate` command that writes a loadable file."""
    path = quote_shell(str(diff.checkpoint.path))
    into = f" --into {quote_shell(diff.module.submodule)}" if diff.module.submodule else ""
    return f"ckptool migrate {path} -o NEW -m {quote_shell(diff.module.target)}{into}"
