"""ModuleInfo -> hits: state of a module that its state_dict lacks (CK101-CK112)."""

from collections.abc import Iterator

from ckptool.model import Constancy, Held, Kind, ModuleState
from ckptool.rules.registry import Hit, Level, Rule, check, hit

_TENSORS = (Kind.ATTRIBUTE, Kind.CLASS_ATTRIBUTE)
_VALUE = {
    Constancy.CONSTANT: "the same on every construction, so it is rebuilt unless it was changed",
    Constancy.RANDOM: "different on every construction, so a load cannot bring it back",
    Constancy.MUTATED: "changed by use, and the change is lost",
    Constancy.UNKNOWN: "not known to be the same on every construction",
}


def _facts(held: Held) -> dict[str, object]:
    tensor = held.tensor
    return {
        "kind": str(held.kind),
        "owner": held.owner,
        "shape": list(tensor.shape),
        "dtype": tensor.dtype,
        "nbytes": tensor.nbytes,
        "constancy": str(held.constancy),
        "value": _VALUE[held.constancy],
        "where": held.where or "an unknown place",
        "used": held.used,
        "name": _attribute(held.key),
    }


def _attribute(key: str) -> str:
    """Return the attribute name: "banks" of "net.banks['k']"."""
    return key.rsplit(".", 1)[-1].split("[", 1)[0]


def _grave(held: Held) -> Level:
    """Return the level of an unsaved tensor by how reproducible its value is."""
    if held.constancy in {Constancy.RANDOM, Constancy.MUTATED}:
        return Level.ERROR
    number = not held.tensor.shape and held.constancy is Constancy.CONSTANT and not held.written
    return Level.NOTE if number or _is_placeholder(held) else Level.WARNING


def _is_placeholder(held: Held) -> bool:
    """Whether the tensor has no elements and no code outside the constructor writes it."""
    return 0 in held.tensor.shape and not held.written


def _own(module: ModuleState, *kinds: Kind) -> Iterator[Held]:
    """Yield unsaved tensors of these kinds that are no alias of registered state."""
    for held in module.unsaved.values():
        if held.kind in kinds and not held.alias_of:
            yield held


@check(
    ModuleState,
    Rule(
        code="CK101",
        name="unregistered-tensor",
        level=Level.WARNING,
        message="`{key}`, {dtype} {shape}, is a plain attribute of {owner}: no checkpoint has it; "
        "its value is {value}",
        why="A tensor assigned as a plain attribute is not in state_dict(). A change to it is "
        "lost by save and load without a word; a random one comes back different, with all keys "
        "matched.",
        fix='In {where}: self.register_buffer("{name}", ...) instead of self.{name} = ...',
        example="class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.mask = torch.tril(torch.ones(4, 4))",
    ),
)
def unregistered_tensor(module: ModuleState) -> Iterator[Hit]:
    for held in _own(module, *_TENSORS):
        yield hit(held.key, _grave(held), **_facts(held))


@check(
    ModuleState,
    Rule(
        code="CK102",
        name="unregistered-tensor-in-container",
        level=Level.WARNING,
        message="`{key}`, {dtype} {shape}, sits in a container of {owner}: no checkpoint has it; "
        "its value is {value}",
        why="state_dict() does not look into lists, dicts or dataclasses, so tensors in them are "
        "neither saved nor moved.",
        fix="In {where}: register each tensor as a buffer, for example "
        'self.register_buffer("{name}_0", ...)',
        example="class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        '        self.banks = {"k": torch.zeros(4)}',
    ),
)
def unregistered_in_container(module: ModuleState) -> Iterator[Hit]:
    for held in _own(module, Kind.CONTAINER):
        yield hit(held.key, _grave(held), **_facts(held))


@check(
    ModuleState,
    Rule(
        code="CK103",
        name="module-not-registered",
        level=Level.ERROR,
        message="`{key}` is a {owner} held outside the module's own tree: its {count} tensors are "
        "neither saved, nor trained by parameters(), nor moved",
        why="A module in a plain list or dict is invisible to state_dict(), parameters() and "
        "to(). The checkpoint lacks its weights and a reload starts it at random.",
        fix="Hold it in nn.ModuleList or nn.ModuleDict. A state_dict saved so far cannot bring "
        "the weights back; a pickle of the whole module can.",
        example="class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.convs = [nn.Linear(4, 4) for _ in range(3)]",
    ),
)
def module_not_registered(module: ModuleState) -> Iterator[Hit]:
    for path, owner in module.hidden_modules.items():
        inside = [h for h in module.held.values() if h.key.startswith(f"{path}.")]
        if not inside:  # without tensors, such as Dropout: there is nothing to save
            continue
        yield hit(path, owner=owner, count=len(inside), nbytes=sum(h.tensor.nbytes for h in inside))


@check(
    ModuleState,
    Rule(
        code="CK104",
        name="parameter-not-registered",
        level=Level.ERROR,
        message="`{key}`, {dtype} {shape}, is an nn.Parameter that {owner} never registered: it "
        "is neither saved nor given to the optimizer",
        why="nn.Module registers a parameter only when it is assigned as an attribute. In a list "
        "or a dict it is not trained, not saved and not moved.",
        fix="Hold it in nn.ParameterList or nn.ParameterDict, or assign it: self.{name} = "
        "nn.Parameter(...)",
        example="class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.scales = [nn.Parameter(torch.ones(1))]",
    ),
)
def parameter_not_registered(module: ModuleState) -> Iterator[Hit]:
    for held in _own(module, Kind.PARAMETER):
        yield hit(held.key, **_facts(held))


@check(
    ModuleState,
    Rule(
        code="CK105",
        name="nonpersistent-not-recomputable",
        level=Level.ERROR,
        message="`{key}`, {dtype} {shape}, is a buffer with persistent=False, and its value is "
        "{value}",
        why="persistent=False promises that the constructor can make the value again. Here it "
        "cannot, so every load silently gives another model.",
        fix="In {where}: drop persistent=False, so that the value is saved.",
        example="class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        '        self.register_buffer("projection", torch.randn(4, 4), persistent=False)',
    ),
)
def nonpersistent_not_recomputable(module: ModuleState) -> Iterator[Hit]:
    for held in _own(module, Kind.NON_PERSISTENT_BUFFER):
        if held.constancy in {Constancy.RANDOM, Constancy.MUTATED}:
            yield hit(held.key, **_facts(held))


@check(
    ModuleState,
    Rule(
        code="CK106",
        name="nonpersistent-buffer",
        level=Level.NOTE,
        message="`{key}`, {dtype} {shape}, is a buffer with persistent=False; its value is {value}",
        why="It is not in the file. That is meant, as long as nothing changes it after "
        "construction.",
        fix="Nothing, if the constructor's value is the right one; else drop persistent=False.",
        example="class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        '        self.register_buffer("position_ids", torch.arange(512), persistent=False)',
    ),
)
def nonpersistent_buffer(module: ModuleState) -> Iterator[Hit]:
    for held in _own(module, Kind.NON_PERSISTENT_BUFFER):
        if held.constancy in {Constancy.CONSTANT, Constancy.UNKNOWN}:
            yield hit(held.key, **_facts(held))


@check(
    ModuleState,
    Rule(
        code="CK108",
        name="numpy-state",
        level=Level.WARNING,
        message="`{key}`, {dtype} {shape}, is a numpy array of {owner}: no checkpoint has it; its "
        "value is {value}",
        why="Statistics kept as numpy arrays (observation means, feature scales) stay behind when "
        "the state_dict is saved, and the reloaded model normalises with the defaults.",
        fix='In {where}: self.register_buffer("{name}", torch.as_tensor(...))',
        example="class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.mean = np.zeros(3)",
    ),
)
def numpy_state(module: ModuleState) -> Iterator[Hit]:
    for held in _own(module, Kind.ARRAY):
        yield hit(held.key, _of_array(held), **_facts(held))


def _of_array(held: Held) -> Level:
    if held.constancy is Constancy.CONSTANT:
        # Never read in forward and never rewritten, or of integers: probably not learnt.
        told = not held.used and not held.written
        return Level.NOTE if told or "int" in held.tensor.dtype else Level.WARNING
    return _grave(held)


@check(
    ModuleState,
    Rule(
        code="CK109",
        name="buffer-alias-stale",
        level=Level.WARNING,
        message="`{key}` shares the memory of `{alias_of}` until .to(): then it is left behind "
        "and goes stale",
        why="to() gives a buffer new storage. A second reference in a list or another attribute "
        "keeps the old one: the wrong device, and old values after a load.",
        fix='Look `{alias_of}` up where it is used, for example self.get_buffer("{alias_of}").',
        example="class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        '        self.register_buffer("table", torch.ones(4))\n'
        "        self.tables = [self.table]",
    ),
)
def buffer_alias_stale(module: ModuleState) -> Iterator[Hit]:
    for held in module.unsaved.values():
        if held.alias_of and not held.follows_to:
            level = Level.WARNING if held.used or held.written else Level.NOTE
            yield hit(held.key, level, alias_of=held.alias_of, owner=held.owner)


@check(
    ModuleState,
    Rule(
        code="CK110",
        name="device-not-following",
        level=Level.ERROR,
        message='`{key}` stays where it is when the module moves: after .to("cuda") it is still '
        "on the CPU{use}",
        why="to() and cuda() move parameters and buffers only. The first forward pass on the "
        "device fails, or the tensor is copied at every step.",
        fix='In {where}: self.register_buffer("{name}", ...), with persistent=False if it need '
        "not be saved.",
        example="class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.mask = torch.tril(torch.ones(4, 4))\n"
        "\n"
        "    def forward(self, x):\n"
        "        return x * self.mask  # x is on the GPU",
    ),
)
def device_not_following(module: ModuleState) -> Iterator[Hit]:
    for held in _own(module, *_TENSORS, Kind.CONTAINER, Kind.PARAMETER):
        if not held.follows_to:
            level, use = _left_behind(held)
            yield hit(held.key, level, use=use, **_facts(held))


def _left_behind(held: Held) -> tuple[Level, str]:
    """Return the level of a tensor that .to() leaves on the CPU, and a clause that explains it."""
    if held.moved:
        return (
            Level.NOTE,
            f"; forward takes it along itself, or only asks its numbers, at {held.moved}",
        )
    if _is_placeholder(held):
        return Level.NOTE, "; it has no elements"
    if not held.tensor.shape:
        return Level.NOTE, "; it has no dimensions, so arithmetic with tensors elsewhere works"
    if held.used:
        return Level.ERROR, f", and forward uses it at {held.used}"
    return Level.WARNING, ""


@check(
    ModuleState,
    Rule(
        code="CK111",
        name="dtype-not-following",
        level=Level.WARNING,
        message="`{key}` stays {dtype} when the module is cast: .half() and .to(torch.bfloat16) "
        "pass it by",
        why="Casts reach parameters and buffers only. Mixed dtypes then fail in forward, or "
        "silently promote the result to float32.",
        fix='In {where}: self.register_buffer("{name}", ...)',
        example="class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.scale = torch.ones(4)\n"
        "\n"
        "\n"
        "Net().half().scale.dtype  # float32",
    ),
)
def dtype_not_following(module: ModuleState) -> Iterator[Hit]:
    for held in _own(module, *_TENSORS, Kind.CONTAINER, Kind.PARAMETER):
        # torch's type promotion: a tensor without dimensions does not decide the result's dtype.
        if not held.follows_dtype and not held.cast and all(held.tensor.shape or (0,)):
            yield hit(held.key, **_facts(held))


@check(
    ModuleState,
    Rule(
        code="CK112",
        name="lazy-or-none-buffer",
        level=Level.WARNING,
        message="`{key}` of {owner} is registered as None{filled}: it is in a checkpoint only once "
        "it was filled, and then a fresh module does not expect it",
        why="load_state_dict() calls the key unexpected as long as the buffer is None, so a file "
        "saved after use does not load into a new instance.",
        fix='Register a tensor of the right shape: self.register_buffer("{name}", '
        "torch.zeros(...))",
        example="class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        '        self.register_buffer("cache", None)\n'
        "\n"
        "    def forward(self, x):\n"
        "        self.cache = x.detach()\n"
        "        return x",
    ),
)
def none_buffer(module: ModuleState) -> Iterator[Hit]:
    for key, place in module.filled.items():
        owner = module.none_buffers[key]
        if owner.startswith("torch."):  # torch registers None for options that stay off
            continue
        filled = f", and filled at {place}" if place else ""
        level = Level.WARNING if place else Level.NOTE
        yield hit(key, level, owner=owner, name=_attribute(key), filled=filled)
