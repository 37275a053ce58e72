"""Cases of files that training code and archivers are known to write."""

import pathlib
import pickle
import zipfile

import modules_for_tests
import torch
from rules.cases import diff, fires, inspect, near
from torch import nn

from ckptool import api


class Reduced:
    """An object that is pickled as a call."""

    def __init__(self, function, *args) -> None:
        self._call = function, args

    def __reduce__(self):
        return self._call


def pack_again(source: pathlib.Path, target: pathlib.Path, compression: int) -> None:
    """Write the records of an archive into another, as an archiver does."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))


# CK301: names that training code writes


@fires("CK301")
def a_path_of_another_system(tmp):
    path = Reduced(pathlib.WindowsPath, "D:\\runs", "best.pt")
    return inspect(tmp, {"model": nn.Linear(2, 2).state_dict(), "best": path})


@fires("CK301", "CK309")
def a_bound_method_of_a_scheduler(tmp):
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    state = {**scheduler.state_dict(), "anneal_func": scheduler.get_last_lr}
    return inspect(tmp, {"model": nn.Linear(2, 2).state_dict(), "lr_scheduler": state})


@fires("CK301", "CK302")
def state_dict_without_the_call(tmp):
    return inspect(tmp, modules_for_tests.Encoder().state_dict)


@fires("CK301", "CK313")
def tensors_of_pickle_dump(tmp):
    with (tmp / "model.pkl").open("wb") as file:
        pickle.dump(nn.Linear(2, 2).state_dict(), file)
    return api.inspect(tmp / "model.pkl")


# CK320 and CK321: parts of what the ranks of a run have


def partition(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the state_dict that ZeRO-3 leaves of one that is saved without gathering."""
    return {key: torch.empty(0) for key in state}


@fires("CK320", "CK210")
def parameters_were_not_gathered(tmp):
    return diff(tmp, partition(modules_for_tests.Encoder().state_dict()), "Encoder")


@fires("CK320")
def small_parameters_stay_whole(tmp):
    """ZeRO-3 partitions what is larger than `stage3_param_persistence_threshold`."""
    state = nn.TransformerEncoderLayer(8, 2, 8).state_dict()
    large = {key: torch.empty(0) for key, tensor in state.items() if tensor.dim() > 1}
    return inspect(tmp, state | large)


@near("CK320")
def observers_begin_without_elements(tmp):
    observer = torch.ao.quantization.MinMaxObserver()
    return inspect(tmp, observer.state_dict() | {"memory": torch.empty(0)})


@near("CK320")
def an_embedding_of_nothing(tmp):
    empty = {"a.weight": torch.empty(0, 4), "b.weight": torch.empty(0, 4)}
    return inspect(tmp, empty | {"bias": torch.ones(2)})


def save_ranks(tmp: pathlib.Path, *names: str):
    for name in names:
        (tmp / name).parent.mkdir(exist_ok=True)
        torch.save(nn.Linear(4, 2).state_dict(), tmp / name)
    return api.diff(
        tmp / names[0], module="torch.nn:Linear", kwargs={"in_features": 4, "out_features": 4}
    )


@fires("CK321", "CK207", "CK210")
def slices_of_two_ranks(tmp):
    report = save_ranks(tmp, "mp_rank_00_model_states.pt", "mp_rank_01_model_states.pt")
    (message,) = {f.message for f in report.findings if f.key == "weight"}
    assert "dimension 0 is 2 instead of 4, which is one of the slices of 2 ranks" in message
    return report


@fires("CK321", "CK207", "CK210")
def folders_of_megatron(tmp):
    names = [f"mp_rank_{rank:02}/model_optim_rng.pt" for rank in range(2)]
    return save_ranks(tmp, *names)


@fires("CK321", "CK207", "CK210")
def consolidated_files_of_llama(tmp):
    return save_ranks(tmp, "consolidated.00.pth", "consolidated.01.pth")


@fires("CK321")
def shards_of_one_run_with_other_keys(tmp):
    torch.save({"a.weight": torch.ones(2)}, tmp / "stage_rank0.pt")
    torch.save({"b.weight": torch.ones(2)}, tmp / "stage_rank1.pt")
    return api.inspect(tmp / "stage_rank0.pt")


@near("CK321")
def copies_that_every_rank_saved(tmp):
    for rank in range(2):
        torch.save({"rank": rank, "w": torch.ones(2, 3)}, tmp / f"model_rank{rank}.pt")
    return api.inspect(tmp / "model_rank1.pt")


@near("CK321")
def adapters_of_two_ranks_of_lora(tmp):
    for rank in (8, 16):
        torch.save({"lora_A.weight": torch.ones(rank, 4)}, tmp / f"lora_rank{rank}.pt")
    return api.inspect(tmp / "lora_rank8.pt")


@near("CK321", "CK207", "CK210")
def checkpoints_of_two_epochs(tmp):
    return save_ranks(tmp, "model_00.pth", "model_01.pth", "mp_rank_00.pth")


# CK322: archives


@fires("CK322")
def an_archive_that_was_compressed(tmp):
    torch.save(nn.Linear(40, 30).state_dict(), tmp / "saved.pth")
    pack_again(tmp / "saved.pth", tmp / "model.pth", zipfile.ZIP_DEFLATED)
    return api.inspect(tmp / "model.pth")


@near("CK322")
def an_archive_that_was_stored(tmp):
    torch.save(nn.Linear(40, 30).state_dict(), tmp / "saved.pth")
    pack_again(tmp / "saved.pth", tmp / "model.pth", zipfile.ZIP_STORED)
    return api.inspect(tmp / "model.pth")


# CK503: one storage, and no memory in common


@near("CK503")
def flat_weights_of_an_lstm_on_cuda(tmp):
    lstm = nn.LSTM(3, 4)
    flat = torch.cat([parameter.detach().reshape(-1) for parameter in lstm.parameters()])
    pieces = flat.split([parameter.numel() for parameter in lstm.parameters()])
    shapes = {key: parameter.shape for key, parameter in lstm.named_parameters()}
    state = {key: piece.view(shapes[key]) for key, piece in zip(shapes, pieces, strict=True)}
    return inspect(tmp, state)


@fires("CK503")
def views_that_overlap(tmp):
    whole = torch.zeros(6)
    return inspect(tmp, {"a": whole[:4], "b": whole[3:], "c": torch.zeros(2)})


# CK327: files without values


@fires("CK327", "CK223")
def weights_saved_on_meta(tmp):
    return diff(tmp, modules_for_tests.Encoder().to("meta").state_dict(), "Encoder")


@fires("CK327")
def a_file_without_an_element(tmp):
    return inspect(tmp, {"a.weight": torch.empty(0, 4), "b.weight": torch.empty(0, 4)})


@near("CK327")
def one_layer_of_nothing_beside_others(tmp):
    return inspect(tmp, nn.Linear(2, 2).state_dict() | {"none.weight": torch.empty(0, 4)})
