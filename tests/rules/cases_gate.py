"""What a policy asks for (CK85x): the same release, asked for less and for more."""

import argparse
from datetime import date

import torch
from rules.cases import fires, near
from safetensors.torch import save_file
from torch import nn

from ckptool import api
from ckptool.config import (
    ModelEntry,
    PathEntry,
    ProjectConfig,
    ReleaseRequirements,
    Settings,
    Waiver,
)
from ckptool.policy.resolve import resolve_policy

LINEAR = {"in_features": 2, "out_features": 3}


def gate(tmp, content, require=None, waivers=(), module=None, kwargs=LINEAR, **options):
    path = tmp / "model.pth"
    torch.save(content, path)
    config = ProjectConfig(
        Settings(require=require or ReleaseRequirements(), waivers=tuple(waivers)), tmp
    )
    policy = options.pop("policy", resolve_policy(config))
    named = {"module": module, "kwargs": kwargs} if module else {}
    return api.gate(path, config=config, policy=policy, **named, **options)


def linear():
    return nn.Linear(2, 3).state_dict()


@fires("CK851", "CK203")
def a_recomputable_buffer_is_missing(tmp):
    import modules_for_tests

    state = modules_for_tests.BufferMask().state_dict()
    del state["mask"]
    return gate(tmp, state, module="modules_for_tests:BufferMask", kwargs={})


@near("CK851", "CK201")
def a_missing_key_that_fails_by_itself(tmp):
    return gate(tmp, {"weight": linear()["weight"]}, module="torch.nn:Linear")


@fires("CK852")
def a_dtype_that_is_not_allowed(tmp):
    return gate(tmp, linear(), ReleaseRequirements(dtypes=("bfloat16", "int*")))


@near("CK852")
def all_dtypes_allowed(tmp):
    return gate(tmp, linear(), ReleaseRequirements(dtypes=("float*",)))


@fires("CK853")
def more_bytes_than_allowed(tmp):
    return gate(tmp, linear(), ReleaseRequirements(max_size="1 kB"))


@near("CK853")
def fewer_bytes_than_allowed(tmp):
    return gate(tmp, linear(), ReleaseRequirements(max_size="1 MiB"))


@fires("CK854")
def a_pickle_where_safetensors_is_asked_for(tmp):
    return gate(tmp, linear(), ReleaseRequirements(safetensors=True))


@near("CK854")
def safetensors_as_asked_for(tmp):
    save_file(linear(), tmp / "m.safetensors", {"format": "pt"})
    config = ProjectConfig(Settings(require=ReleaseRequirements(safetensors=True)), tmp)
    return api.gate(tmp / "m.safetensors", config=config)


def gate_models(tmp, *patterns, paths=(), **options):
    torch.save(linear(), tmp / "model.pth")
    models = tuple(ModelEntry(path=p, module="torch.nn:Linear", kwargs=LINEAR) for p in patterns)
    config = ProjectConfig(Settings(models=models, paths=paths), tmp)
    return api.gate(config=config, policy=resolve_policy(config), **options)


@fires("CK328")
def a_path_of_the_configuration_that_is_misspelt(tmp):
    return gate_models(tmp, "*.pth", "releese/*")


@near("CK328")
def a_path_of_the_configuration_that_matches(tmp):
    return gate_models(tmp, "*.pth", paths=(PathEntry(path="model.*"),))


@fires("CK329")
def a_strict_load_is_required_and_no_module_is_named(tmp):
    return gate(tmp, linear(), ReleaseRequirements(strict=True))


@near("CK329")
def a_strict_load_is_required_and_done(tmp):
    return gate(tmp, linear(), ReleaseRequirements(strict=True), module="torch.nn:Linear")


@fires("CK860")
def the_usual_place_does_not_load(tmp):
    saved = {"state_dict": {"kernel": torch.ones(3, 2)}, "extra": linear()}
    return gate(tmp, saved, module="torch.nn:Linear")


@near("CK860")
def the_usual_place_loads_and_so_does_another(tmp):
    saved = {"state_dict": linear(), "ema": linear()}
    return gate(tmp, saved, module="torch.nn:Linear")


@fires("CK855", "CK301")
def a_name_that_is_not_allowed(tmp):
    saved = {**linear(), "args": argparse.Namespace(lr=1)}
    return gate(tmp, saved, ReleaseRequirements(globals=("datetime.date",)))


@near("CK855", "CK301")
def names_that_are_allowed(tmp):
    saved = {**linear(), "args": argparse.Namespace(lr=1)}
    return gate(tmp, saved, ReleaseRequirements(globals=("argparse.Namespace",)))


@fires("CK856")
def a_forward_pass_without_an_input(tmp):
    require = ReleaseRequirements(verify=("load", "forward"), device="simulated")
    return gate(tmp, linear(), require, module="torch.nn:Linear")


@near("CK856")
def a_forward_pass_on_a_simulated_device(tmp):
    require = ReleaseRequirements(verify=("load", "device", "forward"), device="simulated")
    words = ("float32[4,2]",)
    return gate(tmp, linear(), require, module="torch.nn:Linear", inputs=words)


def waiver(**changes):
    return Waiver(**{"rule": "CK854", "reason": "until the readers can", **changes})


@fires("CK857", "CK854")
def an_expired_waiver(tmp):
    lapsed = waiver(expires=date(2020, 1, 31))
    return gate(tmp, linear(), ReleaseRequirements(safetensors=True), [lapsed])


@near("CK857")
def a_waiver_that_has_not_expired(tmp):
    return gate(
        tmp, linear(), ReleaseRequirements(safetensors=True), [waiver(expires=date(2999, 1, 31))]
    )


@fires("CK858")
def a_waiver_of_nothing(tmp):
    return gate(tmp, linear(), waivers=[waiver()])


@near("CK858")
def a_waiver_for_other_files(tmp):
    return gate(tmp, linear(), waivers=[waiver(path="other/*")])


@fires("CK859")
def a_known_finding_that_is_mended(tmp):
    asked = ReleaseRequirements(safetensors=True)
    gate(tmp, linear(), asked, baseline=tmp / "known.json", update_baseline=True)
    return gate(tmp, linear(), baseline=tmp / "known.json")


@near("CK859")
def a_known_finding_that_is_still_there(tmp):
    asked = ReleaseRequirements(safetensors=True)
    gate(tmp, linear(), asked, baseline=tmp / "known.json", update_baseline=True)
    return gate(tmp, linear(), asked, baseline=tmp / "known.json")


@fires("CK210")
def less_coverage_than_the_policy_asks_for(tmp):
    state = {k: v for k, v in nn.Linear(2, 3).state_dict().items() if k == "weight"}
    require = ReleaseRequirements(coverage=0.9)
    return gate(tmp, state, require, [waiver(rule="CK201")], module="torch.nn:Linear")


@near("CK210", "CK201")
def as_much_coverage_as_the_policy_asks_for(tmp):
    state = {k: v for k, v in nn.Linear(2, 3).state_dict().items() if k == "weight"}
    return gate(tmp, state, ReleaseRequirements(coverage=0.5), module="torch.nn:Linear")
