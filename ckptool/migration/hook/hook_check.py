"""StateDict, plan and module's name -> the test of a hook, and the old state that it loads."""

from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from ckptool.migration.hook.code_layout import lay_out
from ckptool.migration.plan.plan_file import Plan
from ckptool.migration.plan.tensor_operations import TieTensors
from ckptool.model import StateDict, TensorInfo

if TYPE_CHECKING:
    from torch import Tensor

MAX_EXAMPLE_NUMEL: Final = 50_000
"""Elements of an old state whose values a test compares."""


class HookCheck(Struct, frozen=True):
    """Names in the test of a hook."""

    hook_module: str
    """"package.upgrade_net"."""
    old_name: str
    new_name: str
    """Names of the files next to the test."""
    module: str = ""
    """"package.net:Net"; "" without a module."""
    arguments: Mapping[str, str] = {}
    """Constructor arguments as Python source."""

    @property
    def can_build(self) -> bool:
        """Whether the test can build the module: a name, and arguments that source can say."""
        name = self.module.partition(":")[2]
        has_objects = any(value == "..." or value[:1] == "@" for value in self.arguments.values())
        return name.isidentifier() and not has_objects


def format_hook_check(check: HookCheck) -> str:
    """Return the text of the test file, laid out as ruff format does."""
    if not check.module:
        return _format_state_check(check)
    source, name, words = _describe_module(check)
    imports = sorted(
        [
            f"from {source} import {name}",
            f"from {check.hook_module} import VERSION, register_upgrade_hook",
        ]
    )
    lines = [
        f'"""An old state_dict of {name} loads strictly."""',
        "",
        "from pathlib import Path",
        "",
        "import torch",
        *imports,
        "",
        "FOLDER = Path(__file__).parent",
        "",
        "",
        "def test_an_old_state_dict_loads() -> None:",
        *(f"    {line}" for line in lay_out(f"module = {name}(", words, ")", depth=1)),
        "    if module._version < VERSION:  # until the class registers the hook itself",
        "        register_upgrade_hook(module)",
        f'    old = torch.load(FOLDER / "{check.old_name}", weights_only=True)',
        "    module.load_state_dict(old)",
        "    state = module.state_dict()",
        f'    new = torch.load(FOLDER / "{check.new_name}", weights_only=True)',
        "    assert new.keys() <= state.keys()",
        "    assert all(torch.equal(state[key], new[key]) for key in new)",
    ]
    return "\n".join([*lines, ""])


def format_old_file_check(check: HookCheck) -> str:
    """Return the text of a test in which a class that registers hooks loads an old state_dict."""
    source, name, words = _describe_module(check)
    lines = [
        f'"""A state_dict of {name} that was saved before the hook loads strictly."""',
        "",
        "from pathlib import Path",
        "",
        "import torch",
        f"from {source} import {name}",
        "",
        "FOLDER = Path(__file__).parent",
        "",
        "",
        "def test_an_old_state_dict_loads() -> None:",
        *(f"    {line}" for line in lay_out(f"module = {name}(", words, ")", depth=1)),
        f'    old = torch.load(FOLDER / "{check.old_name}", weights_only=True)',
        "    module.load_state_dict(old)",
        "    state = module.state_dict()",
        "    assert all(torch.equal(state[key], old[key]) for key in old)",
    ]
    return "\n".join([*lines, ""])


def _describe_module(check: HookCheck) -> tuple[str, str, list[str]]:
    """Return the module to import from, the name in it, and the arguments of the constructor."""
    source, _, name = check.module.partition(":")
    words = [f"{argument}={value}" for argument, value in check.arguments.items()]
    return source.removesuffix(".py").replace("/", ".").lstrip("."), name, words


def _format_state_check(check: HookCheck) -> str:
    lines = [
        '"""An old state_dict is upgraded."""',
        "",
        "from pathlib import Path",
        "",
        "import torch",
        f"from {check.hook_module} import upgrade_state",
        "",
        "FOLDER = Path(__file__).parent",
        "",
        "",
        "def test_an_old_state_dict_is_upgraded() -> None:",
        f'    state = torch.load(FOLDER / "{check.old_name}", weights_only=True)',
        f'    new = torch.load(FOLDER / "{check.new_name}", weights_only=True)',
        "    upgrade_state(state, new)",
        "    assert state.keys() == new.keys()",
        "    assert all(torch.equal(state[key], new[key]) for key in new)",
    ]
    return "\n".join([*lines, ""])


def build_example_state(state: StateDict, plan: Plan) -> "OrderedDict[str, Tensor] | None":
    """Return a small state_dict with the keys, shapes, dtypes, ties and versions of a state.

    None if it holds something other than plain tensors, or more than MAX_EXAMPLE_NUMEL elements.
    """
    tensors = state.tensors.values()
    is_plain = all(t.layout == "strided" and not t.wrapper for t in tensors)
    if state.non_tensors or not is_plain or sum(t.numel for t in tensors) > MAX_EXAMPLE_NUMEL:
        return None
    example: OrderedDict[str, Any] = OrderedDict()
    values: dict[object, Tensor] = {}
    for number, (key, tensor) in enumerate(state.tensors.items()):
        identity = (tensor.storage.key if tensor.storage else key, tensor.storage_offset)
        if identity not in values or values[identity].shape != tensor.shape:
            values[identity] = _make_values(tensor, number)
        example[key] = values[identity]
    for op in plan.ops:
        if isinstance(op, TieTensors) and {op.key, op.to} <= example.keys():
            example[op.key] = example[op.to]
    if state.versions is not None:
        from ckptool.verification.loading.load_tensors import set_version_numbers

        set_version_numbers(example, state.versions, state.module_metadata)
    return example


def _make_values(tensor: TensorInfo, number: int) -> "Tensor":
    """Return small integers, which every dtype can represent, in an order of their own."""
    import torch

    dtype = getattr(torch, tensor.dtype)
    numbers = (torch.arange(tensor.numel) * (number + 1)) % 7 + 1
    return numbers.to(dtype).reshape(tensor.shape)
