"""Cases of the rules on what a module's own loading code does with a file."""

import zipfile

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


def _cascade():
    return torch.nn.ModuleDict({"pnet": torch.nn.Linear(2, 2), "rnet": torch.nn.Linear(3, 3)})


@fires("CK224")
def the_file_is_one_net_of_a_cascade(tmp):
    path = tmp / "pnet.pth"
    torch.save(torch.nn.Linear(2, 2).state_dict(), path)
    return api.diff(path, module=_cascade())


@near("CK224", "CK201", "CK210")
def the_file_lacks_one_net_of_a_cascade(tmp):
    path = tmp / "pnet.pth"
    torch.save({f"pnet.{k}": v for k, v in torch.nn.Linear(2, 2).state_dict().items()}, path)
    return api.diff(path, module=_cascade())


@fires("CK225")
def the_module_is_one_net_of_the_file(tmp):
    path = tmp / "cascade.pth"
    torch.save(_cascade().state_dict(), path)
    return api.diff(path, module=torch.nn.Linear(2, 2))


@near("CK225", "CK209", "CK214", "CK210")
def a_loss_is_beside_the_module(tmp):
    path = tmp / "lightning.pth"
    state = {f"model.{k}": v for k, v in torch.nn.Linear(2, 2).state_dict().items()}
    torch.save(state | {"criterion.weight": torch.ones(2)}, path)
    return api.diff(path, module=torch.nn.Linear(2, 2))


class Scaled(torch.Tensor):
    """A subclass that torch.load(weights_only=True) does not allow."""


@fires("CK226", "CK301")
def a_subclass_that_torch_does_not_load(tmp):
    state = {key: t.as_subclass(Scaled) for key, t in torch.nn.Linear(4, 4).state_dict().items()}
    return diff(tmp, state, "torch.nn:Linear", in_features=4, out_features=4)


@near("CK226", "CK301")
def a_subclass_that_the_module_does_not_take(tmp):
    """What is left out of the load is not copied."""
    state = torch.nn.Linear(4, 4).state_dict()
    state = {"module": state, "ema": {"weight": torch.ones(1).as_subclass(Scaled)}}
    return diff(tmp, state, "torch.nn:Linear", in_features=4, out_features=4)


def _pack(tmp, rename):
    torch.save(torch.nn.Linear(4, 4).state_dict(), tmp / "saved.pth")
    with (
        zipfile.ZipFile(tmp / "saved.pth") as source,
        zipfile.ZipFile(tmp / "model.pth", "w") as archive,
    ):
        for name in source.namelist():
            archive.writestr(rename(name), source.read(name))
    return api.inspect(tmp / "model.pth")


@fires("CK313")
def an_archive_packed_without_its_folder(tmp):
    return _pack(tmp, lambda name: name.partition("/")[2])


@near("CK313")
def an_archive_packed_with_its_folder(tmp):
    return _pack(tmp, lambda name: name)
