"""Verification, ForwardEffects, UsageChanges -> hits: run-time problems (CK107, CK113, CK70x)."""

from collections.abc import Iterator

from ckptool.rules.registry import Hit, Level, Rule, also, check, hit
from ckptool.verification.facts import Clash, Exercise, PythonChange, Usage, Verification


@check(
    Exercise,
    Rule(
        code="CK107",
        name="python-state-mutated",
        level=Level.WARNING,
        message="`{key}` of {owner} is a plain Python value that a forward pass changed from "
        "{before} to {after}: no checkpoint has it",
        why="Flags and counters kept as Python values start again after a load. A flag such as "
        "`initialized` then runs its data-dependent set-up over the loaded weights.",
        fix='Keep it as a buffer: self.register_buffer("{name}", torch.tensor({before}))',
        example="class Net(nn.Module):\n"
        "    initialized = False\n"
        "\n"
        "    def forward(self, x):\n"
        "        if not self.initialized:\n"
        "            self.initialized = True\n"
        "        return x",
    ),
)
def python_state_mutated(exercise: Exercise) -> Iterator[Hit]:
    for change in exercise.changed:
        yield _of_change(change)


@also(
    Usage,
    "CK107",
    message="`{key}` of {owner} is a plain Python value that changed from {before} to {after} "
    "{since}: no checkpoint has it",
)
def python_state_lost(usage: Usage) -> Iterator[Hit]:
    for change in usage.changed:
        yield _of_change(change, since=usage.since)


def _of_change(change: PythonChange, **more: str) -> Hit:
    return hit(
        change.path,
        Level.ERROR if change.flag else None,
        owner=change.owner,
        before=change.before,
        after=change.after,
        name=change.path.rsplit(".", 1)[-1],
        **more,
    )


@check(
    Verification,
    Rule(
        code="CK113",
        name="roundtrip-output-mismatch",
        level=Level.ERROR,
        message="saved and loaded into a fresh instance, {module} computes something else: {how}",
        why="All keys matched, and the model is another one: something that forward uses is not "
        "in the state_dict, and the constructor does not make it again.",
        fix="Run `ckptool audit -m {module}`: it names all state that a state_dict does not hold.",
        example="class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.perm = torch.randperm(8)\n"
        "\n"
        "    def forward(self, x):\n"
        "        return x[:, self.perm]",
    ),
)
def roundtrip_output_mismatch(verification: Verification) -> Iterator[Hit]:
    if verification.round_trip:
        yield hit("", module=verification.module, how=verification.round_trip)


@also(Exercise, "CK113")
def exercised_round_trip(exercise: Exercise) -> Iterator[Hit]:
    if exercise.round_trip:
        yield hit("", module=exercise.module, how=exercise.round_trip)


@check(
    Verification,
    Rule(
        code="CK701",
        name="meta-uninitialised-buffer",
        level=Level.WARNING,
        message="`{key}` has no value after a build on meta and load_state_dict(assign=True)",
        why="Large models are built on meta and filled from the file. What the file lacks stays "
        "on meta, or comes up uninitialised after to_empty(), though the constructor computes it.",
        fix="Save it (drop persistent=False, or register it), or compute it after loading.",
        example='with torch.device("meta"):\n'
        '    model = Net()  # has register_buffer("inv_freq", ..., persistent=False)\n'
        "model.load_state_dict(state, assign=True)",
    ),
)
def meta_uninitialised(verification: Verification) -> Iterator[Hit]:
    for path in verification.on_meta:
        yield hit(path)


@check(
    Verification,
    Rule(
        code="CK702",
        name="assign-unties",
        level=Level.WARNING,
        message="`{key}` is one tensor with {others}, and no longer after "
        "load_state_dict(assign=True)",
        why="assign=True puts a new parameter in each place. Tied weights come apart: they train "
        "to different values, and take their memory twice on a device.",
        fix="Tie them again after loading, for example model.tie_weights().",
        example="model.head.weight = model.emb.weight\nmodel.load_state_dict(state, assign=True)",
    ),
)
def assign_unties(verification: Verification) -> Iterator[Hit]:
    for first, *others in verification.untied:
        yield hit(first, others=", ".join(f"`{name}`" for name in others))


@also(
    Verification,
    "CK110",
    message="`{key}` is on {device}, and {op} needs it on {needed}{at}: it is {what}{inside}",
    fix="{remedy}",
)
def clash(verification: Verification) -> Iterator[Hit]:
    for one in verification.clashes:
        yield hit(
            one.attribute or "a tensor of forward",
            device=one.devices[0],
            needed=one.devices[1],
            op=one.op,
            at=f" at {one.where}" if one.where else "",
            where=one.where,
            what=one.what,
            inside=f" (forward of `{one.module}`)" if one.module else "",
            module=one.module,
            remedy=_remedy(one),
        )


def _remedy(one: Clash) -> str:
    if one.devices[1] == "cpu":
        return "Bring it back with .cpu() first."
    if not one.attribute:
        return "Make it on the device of what it meets (device=x.device), or move it: .to(x.device)"
    name = one.attribute.rsplit(".", 1)[-1].split("[", 1)[0]
    place = f"In {one.assigned}: " if one.assigned else ""
    if "numpy" in one.what:
        return f'{place}self.register_buffer("{name}", torch.as_tensor(...))'
    unsaved = "with persistent=False if it need not be saved"
    return f'{place}self.register_buffer("{name}", ...), {unsaved}.'
