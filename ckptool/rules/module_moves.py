"""ModuleInfo -> hits: tensors that do not follow to() or half() (CK109-CK111)."""

from collections.abc import Iterator

from ckptool.model import Kind, ModuleInfo, ModuleTensor
from ckptool.rules.fixes.source_lines import format_alias_lookup
from ckptool.rules.module_state import (
    ATTRIBUTE_KINDS,
    build_unsaved_facts,
    is_placeholder,
    iter_unsaved,
)
from ckptool.rules.registry import Level, Rule, RuleHit, check, hit


@check(
    ModuleInfo,
    Rule(
        code="CK109",
        name="buffer-alias-stale",
        level=Level.WARNING,
        summary="`{key}` shares memory with `{alias_of}` only until .to() is called",
        detail="then it keeps the old memory and becomes stale",
        why=(
            "to() gives a buffer new storage. A second reference in a list or another attribute "
            "keeps the old storage: the wrong device, and stale values after loading."
        ),
        fix="Where it is used: {code} instead of `{key}`; do not keep a second reference.",
        general_advice=(
            'Where it is used: self.get_buffer("ALIAS_OF") instead of `KEY`; do not keep a second '
            "reference."
        ),
        example=(
            "class Net(nn.Module):\n"
            "    def __init__(self):\n"
            "        super().__init__()\n"
            '        self.register_buffer("table", torch.ones(4))\n'
            "        self.tables = [self.table]"
        ),
    ),
)
def find_stale_buffer_aliases(module_info: ModuleInfo) -> Iterator[RuleHit]:
    for module_tensor in module_info.unsaved_tensors.values():
        if module_tensor.alias_of and not module_tensor.follows_to:
            level = (
                Level.WARNING if module_tensor.used_at or module_tensor.written_at else Level.NOTE
            )
            target = module_info.tensors.get(module_tensor.alias_of)
            is_parameter = target is not None and target.kind is Kind.PARAMETER
            yield hit(
                module_tensor.key,
                level,
                alias_of=module_tensor.alias_of,
                owner=module_tensor.owner,
                code=format_alias_lookup(
                    module_tensor.key, module_tensor.alias_of, is_parameter=is_parameter
                ),
            )


@check(
    ModuleInfo,
    Rule(
        code="CK110",
        name="device-not-following",
        level=Level.ERROR,
        summary="`{key}` {place}{use}",
        why=(
            "to() and cuda() move only parameters and buffers. The first forward pass on the "
            "device fails, or the tensor is copied in every step."
        ),
        fix="{remedy}",
        general_advice=(
            'self.register_buffer("NAME", ..., persistent=False): a buffer moves with the module.'
        ),
        general_summary='`KEY` is still on the CPU after .to("cuda")',
        example=(
            "class Net(nn.Module):\n"
            "    def __init__(self):\n"
            "        super().__init__()\n"
            "        self.mask = torch.tril(torch.ones(4, 4))\n"
            "\n"
            "    def forward(self, x):\n"
            "        return x * self.mask  # x is on the GPU"
        ),
    ),
)
def find_unmoved_tensors(module_info: ModuleInfo) -> Iterator[RuleHit]:
    for module_tensor in iter_unsaved(
        module_info, *ATTRIBUTE_KINDS, Kind.CONTAINER, Kind.PARAMETER
    ):
        if not module_tensor.follows_to:
            level, use_clause = _judge_unmoved_tensor(module_tensor)
            yield hit(
                module_tensor.key,
                level,
                place=_describe_place(module_tensor.tensor.device),
                use=use_clause,
                **build_unsaved_facts(module_tensor),
            )


def _describe_place(device: str) -> str:
    """Return where a tensor is after the module was moved; follows its key."""
    if device.startswith("cuda"):
        return f"stays on {device}, where the constructor puts it, when the module is moved"
    return 'is still on the CPU after .to("cuda")'


def _judge_unmoved_tensor(module_tensor: ModuleTensor) -> tuple[Level, str]:
    """Return the level of a tensor that .to() leaves on the CPU, and a clause that explains it."""
    if module_tensor.moved_at:
        return (
            Level.NOTE,
            (f"; forward moves it itself, or only reads its values, at {module_tensor.moved_at}"),
        )
    if is_placeholder(module_tensor):
        return Level.NOTE, "; it has no elements"
    if not module_tensor.tensor.shape:
        return (
            Level.NOTE,
            "; it has no dimensions, so arithmetic with tensors on other devices works",
        )
    if not module_tensor.used_at:
        return Level.WARNING, ""
    is_on_cuda = module_tensor.tensor.device.startswith("cuda")
    level = Level.WARNING if is_on_cuda else Level.ERROR
    return level, f", and forward uses it at {module_tensor.used_at}"


@check(
    ModuleInfo,
    Rule(
        code="CK111",
        name="dtype-not-following",
        level=Level.WARNING,
        summary="`{key}` is still {dtype} after .half() or .to(torch.bfloat16)",
        why=(
            "Casts affect only parameters and buffers. Mixed dtypes then fail in forward, or "
            "silently promote the result to float32."
        ),
        fix="{remedy}",
        general_advice=(
            'self.register_buffer("NAME", ..., persistent=False): a buffer is cast with the module.'
        ),
        example=(
            "class Net(nn.Module):\n"
            "    def __init__(self):\n"
            "        super().__init__()\n"
            "        self.scale = torch.ones(4)\n"
            "\n"
            "\n"
            "Net().half().scale.dtype  # float32"
        ),
    ),
)
def find_uncast_tensors(module_info: ModuleInfo) -> Iterator[RuleHit]:
    for module_tensor in iter_unsaved(
        module_info, *ATTRIBUTE_KINDS, Kind.CONTAINER, Kind.PARAMETER
    ):
        # torch's type promotion: a tensor without dimensions does not decide the result's dtype.
        if (
            not module_tensor.follows_dtype
            and not module_tensor.is_cast_on_use
            and all(module_tensor.tensor.shape or (0,))
        ):
            yield hit(module_tensor.key, **build_unsaved_facts(module_tensor))
