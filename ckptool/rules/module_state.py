"""ModuleInfo -> hits: state of a module that its state_dict lacks (CK10x, CK112, CK114)."""

from collections.abc import Iterator
from typing import Final

from ckptool.model import Constancy, Kind, ModuleInfo, ModuleTensor
from ckptool.rules.fixes.source_lines import (
    format_module_registration,
    format_registration,
    format_saved_buffer,
    get_attribute_name,
)
from ckptool.rules.fixes.state_code import advise_own_state
from ckptool.rules.registry import Level, Rule, RuleHit, check, hit

LOST_STATE: Final = frozenset({"CK101", "CK102", "CK103", "CK104", "CK105", "CK107", "CK108"})
"""Codes of the rules on state that a save loses, without those on devices and dtypes."""
ATTRIBUTE_KINDS = (Kind.ATTRIBUTE, Kind.CLASS_ATTRIBUTE)
_CONSTANCY_TEXT = {
    Constancy.CONSTANT: "the same on every construction: the constructor recreates it, so nothing "
    "is lost unless it was modified",
    Constancy.RANDOM: "different on every construction, so loading cannot restore it",
    Constancy.MUTATED: "modified during use, and the change is lost",
    Constancy.UNKNOWN: "not known to be the same on every construction",
}


def build_unsaved_facts(module_tensor: ModuleTensor) -> dict[str, object]:
    tensor = module_tensor.tensor
    return {
        "kind": str(module_tensor.kind),
        "owner": module_tensor.owner,
        "shape": list(tensor.shape),
        "dtype": tensor.dtype,
        "nbytes": tensor.nbytes,
        "constancy": str(module_tensor.constancy),
        "value": _describe_constancy(module_tensor),
        "where": module_tensor.assigned_at or "an unknown place",
        "used": module_tensor.used_at,
        "name": get_attribute_name(module_tensor.key),
        "remedy": format_saved_buffer(module_tensor)
        if module_tensor.kind is Kind.NON_PERSISTENT_BUFFER
        else format_registration(module_tensor),
    }


def _describe_constancy(module_tensor: ModuleTensor) -> str:
    if module_tensor.constancy is Constancy.CONSTANT and module_tensor.written_at:
        return (
            "the same on every construction, and code outside the constructor modifies it "
            f"({module_tensor.written_at}): loading resets it"
        )
    return _CONSTANCY_TEXT[module_tensor.constancy]


def _choose_unsaved_level(module_tensor: ModuleTensor) -> Level:
    """Return the level of an unsaved tensor by how reproducible its value is."""
    if module_tensor.constancy in {Constancy.RANDOM, Constancy.MUTATED}:
        return Level.ERROR
    is_constant_number = (
        not module_tensor.tensor.shape
        and module_tensor.constancy is Constancy.CONSTANT
        and not module_tensor.written_at
    )
    return Level.NOTE if is_constant_number or is_placeholder(module_tensor) else Level.WARNING


def is_placeholder(module_tensor: ModuleTensor) -> bool:
    """Whether the tensor has no elements and no code outside the constructor writes it."""
    return 0 in module_tensor.tensor.shape and not module_tensor.written_at


def iter_unsaved(module_info: ModuleInfo, *kinds: Kind) -> Iterator[ModuleTensor]:
    """Yield unsaved tensors of these kinds that are no alias of registered state."""
    for module_tensor in module_info.unsaved_tensors.values():
        if module_tensor.kind in kinds and not module_tensor.alias_of:
            yield module_tensor


@check(
    ModuleInfo,
    Rule(
        code="CK101",
        name="unregistered-tensor",
        level=Level.WARNING,
        summary="`{key}`, {dtype} {shape}, is a plain attribute of {owner}",
        detail="no checkpoint has it; its value is {value}",
        why=(
            "A tensor assigned as a plain attribute is not in state_dict(). A modification is "
            "silently lost by saving and loading; a random value comes back different, with all "
            "keys matched."
        ),
        fix="{remedy}",
        general_advice=(
            'self.register_buffer("NAME", ..., persistent=False) instead of self.NAME = '
            "...: old checkpoints load as before. Without persistent=False it is saved as "
            "well, and old checkpoints need a migration (`ckptool migrate`)."
        ),
        example=(
            "class Net(nn.Module):\n"
            "    def __init__(self):\n"
            "        super().__init__()\n"
            "        self.mask = torch.tril(torch.ones(4, 4))"
        ),
    ),
)
def find_unregistered_tensors(module_info: ModuleInfo) -> Iterator[RuleHit]:
    for module_tensor in iter_unsaved(module_info, *ATTRIBUTE_KINDS):
        yield hit(
            module_tensor.key,
            _choose_unsaved_level(module_tensor),
            **build_unsaved_facts(module_tensor),
        )


@check(
    ModuleInfo,
    Rule(
        code="CK102",
        name="unregistered-tensor-in-container",
        level=Level.WARNING,
        summary="`{key}`, {dtype} {shape}, is in a plain container of {owner}",
        detail="no checkpoint has it; its value is {value}",
        why=(
            "state_dict() does not look into lists, dicts or dataclasses: tensors in them are "
            "neither saved nor moved."
        ),
        fix="{remedy}",
        general_advice=(
            'Register each tensor: self.register_buffer("NAME_0", ...), or '
            "nn.ParameterList and nn.ParameterDict for parameters."
        ),
        example=(
            "class Net(nn.Module):\n"
            "    def __init__(self):\n"
            "        super().__init__()\n"
            '        self.banks = {"k": torch.zeros(4)}'
        ),
    ),
)
def find_unregistered_in_containers(module_info: ModuleInfo) -> Iterator[RuleHit]:
    for module_tensor in iter_unsaved(module_info, Kind.CONTAINER):
        yield hit(
            module_tensor.key,
            _choose_unsaved_level(module_tensor),
            **build_unsaved_facts(module_tensor),
        )


@check(
    ModuleInfo,
    Rule(
        code="CK103",
        name="module-not-registered",
        level=Level.ERROR,
        summary="`{key}` is a {owner} that is not registered as a submodule",
        detail="its tensors ({count}) are not saved, not in parameters() and not moved by .to()",
        why=(
            "A module in a plain list or dict is invisible to state_dict(), parameters() and "
            "to(). The checkpoint does not contain its weights, and loading leaves it randomly "
            "initialised."
        ),
        fix=(
            "{remedy}; a state_dict that was saved earlier does not have the weights, and a pickle "
            "of the whole module does."
        ),
        general_advice=(
            "self.NAME = nn.ModuleList(...) instead of self.NAME = ...; a state_dict that was "
            "saved earlier does not have the weights, and a pickle of the whole module does."
        ),
        example=(
            "class Net(nn.Module):\n"
            "    def __init__(self):\n"
            "        super().__init__()\n"
            "        self.convs = [nn.Linear(4, 4) for _ in range(3)]"
        ),
    ),
)
def find_unregistered_modules(module_info: ModuleInfo) -> Iterator[RuleHit]:
    for path, owner in module_info.hidden_modules.items():
        module_tensors = [
            module_tensor
            for module_tensor in module_info.tensors.values()
            if module_tensor.key.startswith(f"{path}.")
        ]
        if not module_tensors:  # without tensors, such as Dropout: there is nothing to save
            continue
        yield hit(
            path,
            owner=owner,
            count=len(module_tensors),
            nbytes=sum(module_tensor.tensor.nbytes for module_tensor in module_tensors),
            where=module_tensors[0].assigned_at,
            remedy=format_module_registration(
                path, module_tensors[0].assigned_to, module_tensors[0].assigned_at
            ),
        )


@check(
    ModuleInfo,
    Rule(
        code="CK104",
        name="parameter-not-registered",
        level=Level.ERROR,
        summary="`{key}`, {dtype} {shape}, is an nn.Parameter that is not registered in {owner}",
        detail="it is neither saved nor optimised",
        why=(
            "nn.Module registers a parameter only when it is assigned as an attribute. In a list "
            "or a dict it is not trained, not saved and not moved."
        ),
        fix="{remedy}",
        general_advice=(
            "Keep it in nn.ParameterList or nn.ParameterDict, or assign it: self.NAME = "
            "nn.Parameter(...)."
        ),
        example=(
            "class Net(nn.Module):\n"
            "    def __init__(self):\n"
            "        super().__init__()\n"
            "        self.scales = [nn.Parameter(torch.ones(1))]"
        ),
    ),
)
def find_unregistered_parameters(module_info: ModuleInfo) -> Iterator[RuleHit]:
    for module_tensor in iter_unsaved(module_info, Kind.PARAMETER):
        yield hit(module_tensor.key, **build_unsaved_facts(module_tensor))


@check(
    ModuleInfo,
    Rule(
        code="CK105",
        name="nonpersistent-not-recomputable",
        level=Level.ERROR,
        summary=(
            "`{key}`, {dtype} {shape}, is a buffer with persistent=False, and its value is {value}"
        ),
        why=(
            "persistent=False means that the constructor can recreate the value. Here it cannot, "
            "so loading silently gives a different model."
        ),
        fix="Save its value: {remedy}.",
        general_advice='Save its value: register_buffer("NAME", ...) without persistent=False.',
        example=(
            "class Net(nn.Module):\n"
            "    def __init__(self):\n"
            "        super().__init__()\n"
            '        self.register_buffer("projection", torch.randn(4, 4), persistent=False)'
        ),
    ),
)
def find_unrecomputable_buffers(module_info: ModuleInfo) -> Iterator[RuleHit]:
    for module_tensor in iter_unsaved(module_info, Kind.NON_PERSISTENT_BUFFER):
        if module_tensor.constancy in {Constancy.RANDOM, Constancy.MUTATED}:
            yield hit(module_tensor.key, **build_unsaved_facts(module_tensor))


@check(
    ModuleInfo,
    Rule(
        code="CK106",
        name="nonpersistent-buffer",
        level=Level.NOTE,
        summary="`{key}`, {dtype} {shape}, is a buffer with persistent=False; its value is {value}",
        why=(
            "It is not in the file. That is intended, as long as nothing modifies it after "
            "construction."
        ),
        fix="Nothing, if the constructor's value is the right one. To save it: {remedy}.",
        general_advice=(
            "Nothing, if the constructor's value is the right one. To save it: "
            'register_buffer("NAME", ...) without persistent=False.'
        ),
        example=(
            "class Net(nn.Module):\n"
            "    def __init__(self):\n"
            "        super().__init__()\n"
            '        self.register_buffer("position_ids", torch.arange(512), persistent=False)'
        ),
    ),
)
def find_nonpersistent_buffers(module_info: ModuleInfo) -> Iterator[RuleHit]:
    for module_tensor in iter_unsaved(module_info, Kind.NON_PERSISTENT_BUFFER):
        is_filled = module_tensor.key not in module_info.uninitialized_buffers
        if is_filled and module_tensor.constancy in {Constancy.CONSTANT, Constancy.UNKNOWN}:
            yield hit(module_tensor.key, **build_unsaved_facts(module_tensor))


@check(
    ModuleInfo,
    Rule(
        code="CK108",
        name="numpy-state",
        level=Level.WARNING,
        summary="`{key}`, {dtype} {shape}, is a NumPy array of {owner}",
        detail="no checkpoint has it; its value is {value}",
        why=(
            "Statistics kept as NumPy arrays (observation means, feature scales) are not saved "
            "with the state_dict, and the reloaded model normalises with the defaults."
        ),
        fix="{remedy}",
        general_advice=('self.register_buffer("NAME", torch.as_tensor(...)) instead of the array.'),
        example=(
            "class Net(nn.Module):\n"
            "    def __init__(self):\n"
            "        super().__init__()\n"
            "        self.mean = np.zeros(3)"
        ),
    ),
)
def find_numpy_arrays(module_info: ModuleInfo) -> Iterator[RuleHit]:
    for module_tensor in iter_unsaved(module_info, Kind.ARRAY):
        yield hit(
            module_tensor.key,
            _choose_array_level(module_tensor),
            **build_unsaved_facts(module_tensor),
        )


def _choose_array_level(module_tensor: ModuleTensor) -> Level:
    if module_tensor.constancy is Constancy.CONSTANT:
        # Never read in forward and never rewritten, or of integers: probably not learnt.
        is_unused = not module_tensor.used_at and not module_tensor.written_at
        return Level.NOTE if is_unused or "int" in module_tensor.tensor.dtype else Level.WARNING
    return _choose_unsaved_level(module_tensor)


@check(
    ModuleInfo,
    Rule(
        code="CK112",
        name="lazy-or-none-buffer",
        level=Level.WARNING,
        explains_key=True,
        summary="`{key}` of {owner} is registered as None{filled}",
        detail=(
            "it is saved only once it has a value, and then a new instance does not expect the key"
        ),
        why=(
            "load_state_dict() reports the key as unexpected as long as the buffer is None, so a "
            "file saved after use does not load into a new instance."
        ),
        fix=(
            "If it is not to be saved: self.register_buffer({name:py}, None, persistent=False). If "
            "it is, a tensor of the right shape: self.register_buffer({name:py}, torch.zeros(...))"
        ),
        example=(
            "class Net(nn.Module):\n"
            "    def __init__(self):\n"
            "        super().__init__()\n"
            '        self.register_buffer("cache", None)\n'
            "\n"
            "    def forward(self, x):\n"
            "        self.cache = x.detach()\n"
            "        return x"
        ),
    ),
)
def find_none_buffers(module_info: ModuleInfo) -> Iterator[RuleHit]:
    for key, location in module_info.none_buffer_writes.items():
        owner = module_info.none_buffers[key]
        filled_clause = f", and filled at {location}" if location else ""
        level = Level.WARNING if location else Level.NOTE
        yield hit(key, level, owner=owner, name=get_attribute_name(key), filled=filled_clause)


@check(
    ModuleInfo,
    Rule(
        code="CK114",
        name="own-file-not-read",
        level=Level.ERROR,
        summary="a new instance does not load the state_dict() of another instance",
        detail="{error}",
        why=(
            "state_dict() and load_state_dict() are code, and here they do not match: one writes "
            "a key that the other does not accept, or omits one that it requires. No checkpoint "
            "of this module loads strictly."
        ),
        fix="{remedy}",
        general_advice=(
            "Make _load_from_state_dict() read what _save_to_state_dict() writes, and delete it "
            "from the state there; or write only registered state."
        ),
        example=(
            "class Net(nn.Linear):\n"
            "    def _save_to_state_dict(self, destination, prefix, keep_vars):\n"
            "        super()._save_to_state_dict(destination, prefix, keep_vars)\n"
            '        destination[prefix + "format"] = torch.zeros(1)\n'
            "\n"
            "\n"
            "Net(2, 2).load_state_dict(Net(2, 2).state_dict())"
        ),
    ),
)
def find_unreadable_own_state(module_info: ModuleInfo) -> Iterator[RuleHit]:
    if module_info.own_load_error:
        error = module_info.own_load_error
        yield hit("", error=error, remedy=advise_own_state(error))
