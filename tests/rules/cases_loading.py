"""Cases of the rules on what a module's own loading code does with a file."""

import torch
from rules.cases import api, diff, fires, near
from verification.loading_modules import linear

LOADING = "verification.loading_modules:"


@fires("CK222")
def an_override_filters_shapes(tmp):
    return diff(tmp, linear("a") | linear("b", 3), f"{LOADING}FiltersShapes")


@fires("CK222", "CK210")
def an_override_swallows_what_is_missing(tmp):
    return diff(tmp, {"a.bias": torch.ones(4)}, f"{LOADING}SwallowsEverything")


@near("CK222")
def an_override_filters_nothing(tmp):
    return diff(tmp, linear("a") | linear("b"), f"{LOADING}FiltersShapes")


@near("CK222", "CK216")
def a_pre_hook_adds_its_own_mask(tmp):
    return diff(tmp, linear("fc"), f"{LOADING}InjectsMask")


@fires("CK223", "CK114")
def it_asks_for_what_it_never_wrote(tmp):
    state = torch.nn.Linear(4, 4).state_dict()
    return diff(tmp, state, f"{LOADING}AsksForWhatItLeavesOut")


@fires("CK223", "CK216")
def it_refuses_an_old_file(tmp):
    state = dict(torch.nn.Linear(4, 4).state_dict())
    return diff(tmp, state, f"{LOADING}RefusesOldVersions")


@near("CK223", "CK201", "CK216")
def its_hook_leaves_a_key_missing(tmp):
    return diff(tmp, {"old.weight": torch.ones(4, 4)}, f"{LOADING}RenamesInPreHook")


@fires("CK114")
def it_writes_what_it_does_not_read(tmp):
    return api.audit(f"{LOADING}WritesWhatItDoesNotRead")


@near("CK114")
def it_reads_all_that_it_writes(tmp):
    return api.audit(f"{LOADING}KeepsExtraState")
