"""Trace of a plan -> files of a repository: a hook, its test, and the states that it loads."""

import tempfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from ckptool.errors import CkptoolError, WriteError
from ckptool.formats.files.output_group import write_separately
from ckptool.migration.hook.hook_check import HookCheck, build_example_state, format_hook_check
from ckptool.migration.hook.hook_source import HookSubject, format_hook
from ckptool.migration.hook.hook_trace import HookTrace
from ckptool.migration.plan.plan_file import Plan
from ckptool.migration.request import MigrationRequest
from ckptool.migration.run import run_migration
from ckptool.model import Checkpoint, ModuleInfo, StateDict

if TYPE_CHECKING:
    from ckptool.migration.plan.target_module import TargetModule


class HookRequest(Struct, frozen=True):
    """A hook to write."""

    path: Path
    """File of the hook; its test and the states lie next to it."""
    trace: HookTrace
    plan: Plan
    old_state: StateDict
    module_info: ModuleInfo | None
    target: str
    """Import target of the module, "" without one."""
    load_module: "Callable[[Checkpoint], TargetModule] | None"
    """Returns the module that loads the upgraded state."""


def _choose_version(old_state: StateDict, module_info: ModuleInfo | None) -> int:
    """Return the `_version` of the class from the hook on: the next one, if it has the old one."""
    old_version = (old_state.versions or {}).get("")
    module_class = module_info.modules.get("") if module_info else None
    version = (module_class.version if module_class else old_version) or 1
    return version if old_version is not None and old_version < version else version + 1


def list_hook_files(path: Path) -> tuple[Path, Path, Path, Path]:
    """Return the hook itself, its test, and the old and the new state that the test loads."""
    names = (f"test_{path.stem}.py", f"{path.stem}_old.pth", f"{path.stem}_new.pth")
    test, old, new = (path.with_name(name) for name in names)
    return path, test, old, new


def build_hook_files(request: HookRequest) -> tuple[dict[Path, bytes], tuple[str, ...]]:
    """Return the files with their content, and notes on what is not among them.

    Raises:
        PlanError: a hook cannot do a step of the plan.
        WriteError: there is no room for temporary files.
    """
    module_class = request.module_info.modules.get("") if request.module_info else None
    class_name = module_class.name.rpartition(".")[2] if module_class else "the module"
    version = _choose_version(request.old_state, request.module_info)
    subject = HookSubject(class_name, version, _list_assumptions(request.plan))
    files = {request.path: format_hook(request.trace, subject).encode()}
    lines_note = (
        f"{request.path}: in the class, set _version = {version} and call "
        "register_upgrade_hook(self) at the end of __init__"
    )
    _, check_path, old_path, new_path = list_hook_files(request.path)
    check = HookCheck(
        name_module(request.path, request.target),
        old_path.name,
        new_path.name,
        request.target,
        request.module_info.arguments if request.module_info else {},
    )
    states = _build_states(request) if check.can_build or not check.module else None
    if states is None:
        note = (
            f"no test was written for {request.path}: the state is large, or the module is not "
            "built by a name and literal arguments"
        )
        return files, (lines_note, note)
    old_content, new_content = states
    return files | {
        check_path: format_hook_check(check).encode(),
        old_path: old_content,
        new_path: new_content,
    }, (lines_note,)


def name_module(path: Path, target: str) -> str:
    """Return the name by which a file is imported: "package.upgrade_net".

    The packages are the folders with an __init__.py, else those of the module `target` if its file
    is in the same folder.
    """
    names, folder = [path.stem], path.absolute().parent
    while (folder / "__init__.py").exists():
        names.insert(0, folder.name)
        folder = folder.parent
    package = target.partition(":")[0].rpartition(".")[0]
    is_beside = len(names) == 1 and package and not target.partition(":")[0].endswith(".py")
    if is_beside and Path(*package.split(".")).resolve() == path.absolute().parent.resolve():
        names.insert(0, package)
    return ".".join(names)


def _list_assumptions(plan: Plan) -> tuple[str, ...]:
    return tuple(dict.fromkeys(f"Assumed: {op.assumption}" for op in plan.ops if op.assumption))


def _build_states(request: HookRequest) -> tuple[bytes, bytes] | None:
    """Return a small old state_dict and what the plan makes of it, as files; None without one."""
    example = build_example_state(request.old_state, request.plan)
    if example is None:
        return None
    import torch

    buffer = BytesIO()
    torch.save(example, buffer)
    with tempfile.TemporaryDirectory(prefix="ckptool-hook-") as name, write_separately():
        source, target = Path(name, "old.pth"), Path(name, "new.pth")
        source.write_bytes(buffer.getvalue())
        try:
            run_migration(
                MigrationRequest(
                    source=source,
                    target=target,
                    module=request.load_module,
                    plan=request.plan,
                    record_provenance=False,
                )
            )
        except WriteError:
            raise
        except CkptoolError:
            return None
        return buffer.getvalue(), target.read_bytes()
