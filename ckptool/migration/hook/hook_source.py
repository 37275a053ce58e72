"""HookTrace -> the text of a Python file with a hook for old state_dicts."""

from typing import Final

from msgspec import Struct

from ckptool.migration.hook.code_layout import indent_lines, write_comment
from ckptool.migration.hook.hook_trace import HookTrace
from ckptool.migration.hook.step_code import StepCode, write_steps


class HookSubject(Struct, frozen=True):
    """The class that registers the hook."""

    class_name: str
    """"Net"; "the module" without one."""
    version: int
    """Its `_version` from the hook on."""
    notes: tuple[str, ...] = ()
    """What the steps rest on without proof."""


_HOOK: Final = '''
def is_old(state: dict[str, Any], own: Mapping[str, Any], version: int | None) -> bool:
    """Whether a state_dict has to be upgraded.

    Some files, such as safetensors, have no versions: then keys and shapes decide.
    """
    if version is not None:
        return version < VERSION
    return state.keys() != own.keys() or any(
        getattr(state[key], "shape", None) != getattr(own[key], "shape", None)
        for key in own
    )


def upgrade_hook(
    module: nn.Module,
    state_dict: dict[str, Any],
    prefix: str,
    local_metadata: Mapping[str, Any],
    *_: object,
) -> None:
    """Upgrade what load_state_dict() is about to load into `module`, if it is old."""
    own = module.state_dict()
    keys = [key for key in state_dict if key.startswith(prefix)]
    state = {key.removeprefix(prefix): state_dict.pop(key) for key in keys}
    if is_old(state, own, local_metadata.get("version")):
        upgrade_state(state, own)
    state_dict.update((prefix + key, value) for key, value in state.items())


def register_upgrade_hook(module: nn.Module) -> None:
    """Have `module` load old state_dicts; call it at the end of __init__."""
    module.register_load_state_dict_pre_hook(upgrade_hook)
'''


def format_hook(trace: HookTrace, subject: HookSubject) -> str:
    """Return the text of the hook's file: plain torch, laid out as ruff format does.

    Raises:
        PlanError: a hook cannot do a step; the message names it.
    """
    code = write_steps(trace)
    lines = [
        f'"""Loads state_dicts of {subject.class_name} from before version {subject.version}.',
        "",
        f"In the class: `_version = {subject.version}`, and `register_upgrade_hook(self)` at the",
        "end of `__init__`. Written by `ckptool`, which it does not need.",
        '"""',
        "",
        *_format_imports(code),
        "",
        f"VERSION = {subject.version}",
        '"""Version of the class from which on files need no upgrade."""',
        *(line for constant in code.constants for line in constant),
        "",
        "",
        "def upgrade_state(state: dict[str, Any], own: Mapping[str, Any]) -> None:",
        '    """Upgrade an old state_dict in place.',
        "",
        "    Args:",
        "        state: the values by key, without the prefix of the module.",
        "        own: state_dict of the module that loads it.",
        '    """',
        *indent_lines(line for note in subject.notes for line in write_comment(note, 1)),
        *indent_lines(code.body),
    ]
    return "\n".join([*lines, "", *_HOOK.split("\n")])


def _format_imports(code: StepCode) -> list[str]:
    lines = ["import re"] if "re" in code.imports else []
    lines.append("from collections.abc import Mapping")
    lines += ["from fnmatch import fnmatchcase"] if "fnmatch" in code.imports else []
    lines += ["from typing import Any", ""]
    body = "\n".join(code.body)
    lines += ["import torch"] if "torch." in body else []
    return [*lines, f"from torch import {'Tensor, nn' if 'Tensor' in body else 'nn'}"]
