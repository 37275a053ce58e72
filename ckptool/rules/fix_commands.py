"""Commands that fixes of several rules name."""

import shlex

from ckptool.compare.module_diff import ModuleDiff


def format_migrate_command(diff: ModuleDiff) -> str:
    """Return the `ckptool migrate` command that writes a loadable file."""
    path = shlex.quote(str(diff.checkpoint.path))
    into = f" --into {shlex.quote(diff.module.submodule)}" if diff.module.submodule else ""
    return f"ckptool migrate {path} -o NEW -m {diff.module.target}{into}"
