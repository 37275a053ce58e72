"""Facts that a traced process writes down, one struct for each load, save and object."""

from msgspec import Struct

from ckptool.compare.renames import PrefixRewrite

MAX_KEYS = 200
"""Maximum keys in one list of a record; the counts are of all."""


class TraceRecord(Struct, frozen=True, kw_only=True, tag=True):
    """Fields of every record."""

    rank: int = 0
    """RANK of a distributed run, 0 without one."""
    process: int = 0
    """Process ID."""


class KeyMismatch(Struct, frozen=True):
    """A key whose tensor has another shape than the module's."""

    key: str
    shape: tuple[int, ...]
    module_shape: tuple[int, ...]


class UnsavedValue(Struct, frozen=True):
    """State of a live module that no state_dict holds."""

    path: str
    """Python expression relative to the module."""
    kind: str
    """A `model.Kind`, or "value" for a plain Python value."""
    owner: str
    """Qualified name of the class of the module that holds it."""
    text: str
    """Shape, dtype and, if there are few, the distinct values; of a Python value its repr."""
    old_text: str = ""
    """The same at the construction, "" if it is unknown or the same."""
    assigned_at: str = ""
    """"file:line" of its assignment in the class, "" if not found."""
    assigned_to: str = ""
    """What that line assigns to, "self.mask"."""
    is_flag: bool = False
    device: str = ""
    """Device of a tensor."""
    is_changed: bool = False
    """Whether it changed since the module was built, other than by a load."""
    is_built_known: bool = True
    """Whether the value at the construction is known; not of a copied or unpickled module."""
    is_in_object: bool = False
    """Whether a plain value is an attribute of an object that is no module, and has no buffers."""


class LoadRecord(TraceRecord, frozen=True, kw_only=True):
    """One call of a module's load_state_dict, or of a framework's loader."""

    module: str
    """Class of the module."""
    loader: str
    """Function that loaded: "load_state_dict()", "from_pretrained()"."""
    file: str = ""
    """File of the mapping, "" if its tensors come from no file that was read."""
    at: str = ""
    """Key path of the mapping inside the file, "" for the root."""
    where: str = ""
    """"file:line" of the call in the user's code."""
    is_strict: bool = True
    error: str = ""
    """Message of the exception, "" if the load returned."""
    key_count: int = 0
    """Keys of the mapping."""
    missing_keys: tuple[str, ...] = ()
    unexpected_keys: tuple[str, ...] = ()
    mismatches: tuple[KeyMismatch, ...] = ()
    missing_count: int = 0
    unexpected_count: int = 0
    mismatch_count: int = 0
    renamed_count: int = 0
    """Keys of the mapping that the file has under another name: the script renamed them."""
    rewrite: PrefixRewrite | None = None
    """Prefix by which keys of the mapping differ from missing ones; None if there is none."""
    rewritten_count: int = 0
    """Keys that match after it; the key map of `rewrite` is cut."""
    arguments: dict[str, str] | None = None
    """Constructor argument -> literal; None if some cannot be written as literals."""
    unsaved: tuple[UnsavedValue, ...] = ()
    """Tensors and arrays of the module, after the load, that no state_dict holds."""
    devices: tuple[str, ...] = ()
    """Devices of the module's parameters and buffers after the load."""
    broken_ties: tuple[tuple[str, ...], ...] = ()
    """Groups of names that shared a tensor before the load, and no longer do."""


class SavedModule(Struct, frozen=True):
    """A live module whose tensors are in a saved object."""

    module: str
    """Class of the module."""
    at: str
    """Key path of its state inside the object."""
    changed: tuple[UnsavedValue, ...] = ()
    """State that changed since the module was built, and is not in the object."""
    left_out_keys: tuple[str, ...] = ()
    """Keys of the module's state_dict that the mapping lacks."""
    left_out_count: int = 0
    has_baseline: bool = True
    """Whether its state was recorded when it was built."""


class TrainingObject(Struct, frozen=True):
    """A live object with a state_dict: optimizer, scheduler, sampler, GradScaler, ..."""

    number: int
    """Number within the process, in the order of construction."""
    kind: str
    """"optimizer", "LR scheduler", "gradient scaler", "module", "module copy", "object", or
    "random generator"."""
    owner: str
    """Qualified name of its class."""
    where: str = ""
    """"file:line" of its construction, "" if unknown."""
    name: str = ""
    """Name that the script gives a random generator, "" of another object."""


class SaveRecord(TraceRecord, frozen=True, kw_only=True):
    """One call of torch.save, or of a function of safetensors."""

    file: str
    """Path of the file, "" if the object went into memory."""
    saver: str
    """Function that saved: "torch.save()"."""
    where: str = ""
    error: str = ""
    modules: tuple[SavedModule, ...] = ()
    saved_objects: tuple[TrainingObject, ...] = ()
    """Training objects whose state is in the saved object."""
    unsaved_objects: tuple[TrainingObject, ...] = ()
    """Live training objects whose state is not."""
    tensor_count: int = 0


class UncheckedRecord(TraceRecord, frozen=True, kw_only=True):
    """What was not looked at, and why."""

    what: str
    reason: str


class ProcessRecord(TraceRecord, frozen=True, kw_only=True):
    """A process of the command that imported torch."""

    command: str
    torch_version: str


class ProcessEndRecord(TraceRecord, frozen=True, kw_only=True):
    """The end of a process that Python itself ended: not by a signal, nor by os._exit()."""

    errors: tuple[str, ...] = ()
    """Messages of the exception that nothing caught, and of those that led to it."""


class SavedStateRecord(TraceRecord, frozen=True, kw_only=True):
    """What a saved object and the live objects were at a save, as digests: for --resume-check."""

    file: str
    """"": rank 0 saved, and this is another rank, before its next optimizer step."""
    step_count: int
    """Optimizer steps of the process so far."""
    has_model: bool
    """Whether the object has the state of a live module."""
    saved: dict[str, str]
    """Key path of a leaf of the saved object -> digest of its content."""
    live: dict[str, str]
    """State that no state_dict holds, and random states -> digest or value."""


AnyRecord = (
    LoadRecord | SaveRecord | UncheckedRecord | ProcessRecord | ProcessEndRecord | SavedStateRecord
)
