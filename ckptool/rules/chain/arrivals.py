"""ChainChange, FixtureArrival -> hits: a chain, its module and its old files (CK876-CK879)."""

from collections.abc import Iterator

from msgspec import Struct

from ckptool.phrases import quote_path, quote_shell
from ckptool.rules.fixes.commands import format_chain_command
from ckptool.rules.registry import Level, Rule, RuleHit, check, hit


class ChainChange(Struct, frozen=True):
    """The state of today's module compared with what the head of the chain records."""

    head: str
    difference: str
    """"`mask` was added", "" if the state is the recorded one."""


class FixtureArrival(Struct, frozen=True):
    """Whether a fixture of a revision arrives at the head, and computes what it did."""

    revision: str
    fixture: str
    """Its file; "" if the steps of the revision themselves were looked at."""
    failure: str
    """Why it does not arrive, "" if it does."""
    output_drift: str = ""
    """How its outputs differ from the recorded ones, "" if they do not."""
    step_failure: str = ""
    """Why the steps of the revision do not lead to the state that it records, "" if they do."""
    path: str = ""
    """File of the revision."""
    golden: str = ""
    """File of the recorded outputs, "" without one."""
    message: str = ""
    is_head: bool = False
    options: tuple[str, ...] = ()
    """Words of a command about this chain: its folder and its module."""

    @property
    def steps_command(self) -> str:
        """Command that shows the steps that the fixture goes through, and writes nothing."""
        words = ("--from", self.revision, "--dry-run", *self.options)
        return format_chain_command("upgrade", self.fixture, "", words)

    @property
    def steps_advice(self) -> str:
        """What to do about steps that lead to another state than the recorded one."""
        path = quote_path(self.path)
        if not self.is_head:
            return f"Correct its steps; `git log -p -- {path}` shows the earlier ones"
        words = ("ckptool", "revision", "-m", self.message, *self.options)
        command = " ".join(map(quote_shell, words))
        return f"Correct its steps, or draft it again: `mv {path} {path}.old && {command}`"


@check(
    ChainChange,
    Rule(
        code="CK876",
        name="unrecorded-change",
        level=Level.ERROR,
        summary="the state of the module changed since {head}, and no revision covers that",
        detail="{difference}",
        why=(
            "Files that were saved before do not load into the module any more, and the chain of "
            "migrations has no step that would upgrade them."
        ),
        fix='Draft the migration: `ckptool revision -m "what changed"`',
        example=(
            "class Net(nn.Module):  # revision 0001 recorded its state without the mask\n"
            "    def __init__(self):\n"
            "        super().__init__()\n"
            '        self.register_buffer("mask", torch.ones(3))'
        ),
    ),
)
def find_unrecorded_change(change: ChainChange) -> Iterator[RuleHit]:
    if change.difference:
        yield hit("", head=change.head, difference=change.difference)


@check(
    FixtureArrival,
    Rule(
        code="CK877",
        name="revision-fixture",
        level=Level.ERROR,
        summary="the old file of {revision} does not arrive at the head",
        detail="{failure}",
        why=(
            "The fixture stands for all files that were saved at that revision: what happens to it "
            "happens to them."
        ),
        fix="Correct the step of a later revision that `{command}` names; the fixture stays as it "
        "is, and `ckptool check` follows it again",
        general_command="ckptool upgrade FIXTURE --from REV --dry-run",
        example=(
            "import ckptool\n\n"
            "# a step of 0002 was edited, and renames a key that files of 0001 do not have\n"
            "ckptool.check()"
        ),
    ),
)
def find_lost_fixture(arrival: FixtureArrival) -> Iterator[RuleHit]:
    if arrival.failure:
        yield hit(
            arrival.revision,
            revision=arrival.revision,
            failure=arrival.failure,
            command=arrival.steps_command,
        )


@check(
    FixtureArrival,
    Rule(
        code="CK878",
        name="revision-outputs",
        level=Level.ERROR,
        summary="the old file of {revision} computes something else at the head",
        detail="{drift}",
        why=(
            "It loads strictly, so nothing else would show it: users who upgrade their files get "
            "other results."
        ),
        fix="Correct the steps, which `{command}` lists; or, if it is meant to compute something "
        "else, remove what was recorded: `rm {golden:path}`",
        general_command="ckptool upgrade FIXTURE --from REV --dry-run",
        example=(
            "import ckptool\n\n"
            "# 0002 renames the weights of two layers, and has their names the wrong way round\n"
            "ckptool.check()"
        ),
    ),
)
def find_drifted_fixture(arrival: FixtureArrival) -> Iterator[RuleHit]:
    if arrival.output_drift:
        yield hit(
            arrival.revision,
            revision=arrival.revision,
            drift=arrival.output_drift,
            command=arrival.steps_command,
            golden=arrival.golden,
        )


@check(
    FixtureArrival,
    Rule(
        code="CK879",
        name="revision-steps",
        level=Level.ERROR,
        summary="the steps of {revision} do not lead to the state that it records",
        detail="{failure}",
        why=(
            "The recorded state is what files are recognised by, and what later steps rely on: a "
            "step was edited after the revision was drafted, or the branches were merged by hand."
        ),
        fix="{advice}",
        general_advice="Correct its steps, or draft the last revision again: `mv FILE FILE.old && "
        'ckptool revision -m "what changed"`',
        example=(
            "import ckptool\n\n"
            "# the step of 0002 drops `bias`, and its recorded state has it\n"
            "ckptool.check()"
        ),
    ),
)
def find_wrong_steps(arrival: FixtureArrival) -> Iterator[RuleHit]:
    if arrival.step_failure:
        yield hit(
            arrival.revision,
            revision=arrival.revision,
            failure=arrival.step_failure,
            advice=arrival.steps_advice,
        )
