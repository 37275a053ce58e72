"""Rules about what a release promises: modules, files and locks against each other."""

import torch
from compare import models
from rules.cases import fires, near

from ckptool import api
from ckptool.compare.contracts import contract
from ckptool.compare.contracts.contract_diff import compare_contracts
from ckptool.policy import Policy
from ckptool.reports.common import build_finding_reports
from ckptool.rules import run_rules


class Found:
    """What the rules found in one subject: a case asks for `findings`."""

    def __init__(self, *subjects):
        from ckptool.policy import judge

        self.findings = build_finding_reports(judge(run_rules(subjects), Policy()))


def module(name: str) -> contract.Contract:
    from ckptool.modules import ModuleSpec, examine_module

    return contract.build_module_contract(examine_module(ModuleSpec(f"compare.models:{name}")))


def held(new: str, old: str = "First") -> Found:
    return Found(compare_contracts(module(old), module(new)))


@fires("CK801")
def layer_removed(_tmp):
    return held("WithoutNorm")


@near("CK801")
def another_class(_tmp):
    return held("Same")


@near("CK802", "CK801")
def layer_renamed(_tmp):
    return held("Renamed")


@fires("CK802")
def parameter_added(_tmp):
    return held("WithHead")


@fires("CK802")
def constant_buffer_added(_tmp):
    return held("WithTable")


@fires("CK802")
def extra_state_added(_tmp):
    return held("Extra")


@fires("CK803")
def made_unsaved(_tmp):
    return held("Unsaved")


@fires("CK803")
def made_a_buffer(_tmp):
    return held("Registered")


@near("CK803")
def unsaved_then_and_now(_tmp):
    return held("RandomUnsaved", "Unsaved")


@fires("CK213")
def constant_changed(_tmp):
    return held("Retabled", "WithTable")


@near("CK213")
def constant_kept(_tmp):
    return held("WithTable", "WithTable")


@fires("CK804")
def shape_changed(_tmp):
    return held("Wider")


@fires("CK804")
def dtype_of_a_buffer_changed(_tmp):
    return held("Halved")


def replayed(tmp, name: str, *, tolerance: float | None = None):
    from ckptool.commands.gating.expectations import GateExpectations, check_expectations
    from ckptool.commands.target import ModuleTarget
    from ckptool.commands.worker.worker import InProcessWorker
    from ckptool.formats import open_checkpoint
    from ckptool.formats.limits import DEFAULT_LIMITS

    path, golden = tmp / "model.pth", tmp / "golden.safetensors"
    torch.manual_seed(0)
    torch.save(models.First().state_dict(), path)
    given = {} if tolerance is None else {"cpu": tolerance}
    api.lock(path, module="compare.models:First", golden=golden, inputs="compare.models:batch",
             tolerances=given)  # fmt: skip
    target = ModuleTarget(f"compare.models:{name}")
    promises = GateExpectations(golden=(golden,), device="cpu")
    checkpoint = open_checkpoint(path)
    evidence = check_expectations(
        promises, checkpoint, None, target, DEFAULT_LIMITS, InProcessWorker()
    )
    return Found(*evidence.subjects)


@fires("CK805")
def forward_changed(tmp):
    return replayed(tmp, "Drifting")


@fires("CK805")
def within_no_tolerance(tmp):
    return replayed(tmp, "Rounding", tolerance=1e-9)


@near("CK805")
def within_the_tolerance(tmp):
    return replayed(tmp, "Rounding")


def fixture(tmp, name: str) -> Found:
    from ckptool.commands.gating.expectations import check_fixtures
    from ckptool.commands.target import ModuleTarget
    from ckptool.commands.worker.worker import InProcessWorker
    from ckptool.formats.limits import DEFAULT_LIMITS

    torch.save(models.First().state_dict(), tmp / "old.pth")
    target = ModuleTarget(f"compare.models:{name}")
    return Found(*check_fixtures((tmp / "old.pth",), target, (), DEFAULT_LIMITS, InProcessWorker()))


@fires("CK806")
def no_value_for_a_parameter(tmp):
    return fixture(tmp, "WithHead")


@near("CK806")
def loads_strictly(tmp):
    return fixture(tmp, "Same")


@near("CK806")
def the_constructor_makes_it(tmp):
    return fixture(tmp, "Registered")


@near("CK806")
def a_hook_fills_it_in(tmp):
    return fixture(tmp, "Upgrading")
