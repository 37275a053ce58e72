"""Cases of the rules on frameworks' loaders, over what tests/loaders finds the loaders to say."""

import torch
from files import save
from msgspec.structs import replace
from rules.cases import fires, near
from torch import nn

from ckptool.compare.framework.framework_load import apply_loading_info
from ckptool.compare.framework.loading_info import LoadingInfo
from ckptool.compare.module_comparison import build_module_diff
from ckptool.formats import open_checkpoint
from ckptool.modules import describe_module
from ckptool.policy import Policy, judge
from ckptool.reports.audit import build_audit_report
from ckptool.reports.diff import build_module_diff_report
from ckptool.rules import run_rules


class Frequencies(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("freq", torch.arange(4), persistent=False)


def audit_buffers(buffers):
    described = describe_module(Frequencies(), "toy")
    module_info = replace(described, loader="transformers", uninitialized_buffers=buffers)
    return build_audit_report(module_info, judge(run_rules([module_info]), Policy()))


def diff_report(tmp, state, report, name="model.pth"):
    checkpoint = open_checkpoint(save(tmp / name, state))
    module_info = describe_module(nn.Linear(2, 2), "toy")
    diff = apply_loading_info(build_module_diff(checkpoint, module_info, None), report)
    return build_module_diff_report(diff, judge(run_rules([diff]), Policy()), ())


@fires("CK227")
def a_loader_leaves_a_buffer_uninitialized(tmp):
    return audit_buffers({"freq": "from_pretrained()"})


@near("CK227", "CK106")
def a_loader_fills_every_buffer(tmp):
    return audit_buffers({})


@fires("CK228")
def a_loader_drops_an_old_buffer(tmp):
    state = {**nn.Linear(2, 2).state_dict(), "inv_freq": torch.ones(2)}
    return diff_report(tmp, state, LoadingInfo("from_pretrained()", ignored_keys=("inv_freq",)))


@near("CK228", "CK204")
def a_loader_reports_what_it_drops(tmp):
    state = {**nn.Linear(2, 2).state_dict(), "old": torch.ones(2)}
    return diff_report(tmp, state, LoadingInfo("from_pretrained()", unexpected_keys=("old",)))


@fires("CK229")
def weights_of_a_variant(tmp):
    report = LoadingInfo("from_pretrained()")
    return diff_report(tmp, nn.Linear(2, 2).state_dict(), report, "pytorch_model.fp16.bin")


@near("CK229")
def weights_without_a_variant(tmp):
    report = LoadingInfo("from_pretrained()")
    return diff_report(tmp, nn.Linear(2, 2).state_dict(), report, "pytorch_model.bin")
