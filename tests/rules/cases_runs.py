"""Cases of the rules on traced runs: real loads and saves, traced within this process."""

import torch
from rules.cases import fires, near
from torch import nn
from torch.optim.swa_utils import AveragedModel

from ckptool.commands.run import judge_records
from ckptool.policy import Policy
from ckptool.tracing.process_trace import trace_process
from ckptool.tracing.resume_comparison import ResumeComparison, ResumedSave


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.mask = torch.ones(2)


class Buffered(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.register_buffer("mask", torch.ones(2))


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.steps = 0


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Linear(2, 2, bias=False)
        self.head = nn.Linear(2, 2, bias=False)
        self.head.weight = self.embedding.weight


class RecordList:
    """Sink that keeps the records of a trace within this process."""

    def __init__(self):
        self.records = []

    def write_record(self, record):
        self.records.append(record)


def report_run(function, *arguments):
    sink = RecordList()
    with trace_process(sink):
        function(*arguments)
    return judge_records(sink.records, Policy())


def save(state, tmp):
    torch.save(state, tmp / "run.pt")
    return tmp / "run.pt"


@fires("CK230")
def strict_false_swallows_a_prefix(tmp):
    path = save({f"module.{k}": v for k, v in nn.Linear(2, 2).state_dict().items()}, tmp)
    return report_run(lambda: nn.Linear(2, 2).load_state_dict(torch.load(path), strict=False))


@near("CK230")
def strict_false_with_all_keys(tmp):
    path = save(nn.Linear(2, 2).state_dict(), tmp)
    return report_run(lambda: nn.Linear(2, 2).load_state_dict(torch.load(path), strict=False))


@fires("CK231")
def strict_false_drops_a_key(tmp):
    path = save({**nn.Linear(2, 2).state_dict(), "old": torch.ones(1)}, tmp)
    return report_run(lambda: nn.Linear(2, 2).load_state_dict(torch.load(path), strict=False))


@near("CK231")
def the_script_drops_the_key_itself(tmp):
    path = save({**nn.Linear(2, 2).state_dict(), "old": torch.ones(1)}, tmp)

    def load():
        state = torch.load(path)
        del state["old"]
        nn.Linear(2, 2).load_state_dict(state, strict=False)

    return report_run(load)


def load_and_go_on(path, module):
    try:
        module.load_state_dict(torch.load(path))
    except RuntimeError:
        return


@fires("CK232")
def an_error_that_is_caught(tmp):
    path = save(nn.Linear(3, 2).state_dict(), tmp)
    return report_run(load_and_go_on, path, nn.Linear(2, 2))


@near("CK232")
def no_error_to_catch(tmp):
    path = save(nn.Linear(2, 2).state_dict(), tmp)
    return report_run(load_and_go_on, path, nn.Linear(2, 2))


@fires("CK233")
def a_mask_that_no_file_has(tmp):
    path = save(Masked().state_dict(), tmp)
    return report_run(lambda: Masked().load_state_dict(torch.load(path)))


@near("CK233")
def a_mask_that_the_file_has(tmp):
    path = save(Buffered().state_dict(), tmp)
    return report_run(lambda: Buffered().load_state_dict(torch.load(path)))


def load_on_meta(path, module):
    module.linear.to("meta")
    module.load_state_dict(torch.load(path))


@fires("CK234", "CK233")
def a_mask_that_stays_behind(tmp):
    path = save({k: v.to("meta") for k, v in Masked().state_dict().items()}, tmp)
    return report_run(load_on_meta, path, Masked())


@near("CK234", "CK233")
def a_mask_on_the_device_of_the_module(tmp):
    path = save(Masked().state_dict(), tmp)
    return report_run(lambda: Masked().load_state_dict(torch.load(path)))


@fires("CK238")
def assign_unties(tmp):
    state = {name: torch.ones(2, 2) for name in Tied().state_dict()}
    path = save(state, tmp)
    return report_run(lambda: Tied().load_state_dict(torch.load(path), assign=True))


@near("CK238")
def a_copy_keeps_the_tie(tmp):
    path = save(Tied().state_dict(), tmp)
    return report_run(lambda: Tied().load_state_dict(torch.load(path)))


def change_and_save(cls, tmp, extra=()):
    module = cls()
    module.mask *= 2
    torch.save({"model": module.state_dict(), **{n: getattr(module, n) for n in extra}}, tmp / "m")


@fires("CK330")
def a_changed_mask(tmp):
    return report_run(change_and_save, Masked, tmp)


@near("CK330")
def a_changed_buffer(tmp):
    return report_run(change_and_save, Buffered, tmp)


@near("CK330")
def a_changed_mask_that_is_saved_next_to_the_model(tmp):
    return report_run(change_and_save, Masked, tmp, ("mask",))


@near("CK330")
def a_mask_that_nobody_changes(tmp):
    return report_run(lambda: torch.save(Masked().state_dict(), tmp / "m"))


def count_and_save(tmp, extra=()):
    module = Counting()
    module.steps += 3
    torch.save({"model": module.state_dict(), **{n: getattr(module, n) for n in extra}}, tmp / "m")


@fires("CK331")
def a_counter(tmp):
    return report_run(count_and_save, tmp)


@near("CK331")
def a_counter_that_is_saved(tmp):
    return report_run(count_and_save, tmp, ("steps",))


def train_and_save(tmp, names):
    model = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(model.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    scheduler.step()
    objects = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    for name, value in objects.items():
        if name in names:
            torch.save({name: value.state_dict()}, tmp / name)


@fires("CK332")
def a_scheduler_in_no_file(tmp):
    return report_run(train_and_save, tmp, ("model", "optimizer"))


def train_with_average(tmp, *, saves_it):
    model = nn.Linear(2, 2)
    average = AveragedModel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    average.update_parameters(model)
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    extra = {"average": average.module.state_dict()} if saves_it else {}
    torch.save(state | extra, tmp / "run.pt")


@fires("CK332")
def an_average_in_no_file(tmp):
    return report_run(lambda: train_with_average(tmp, saves_it=False))


@near("CK332")
def an_average_that_is_saved(tmp):
    return report_run(lambda: train_with_average(tmp, saves_it=True))


@near("CK332")
def each_object_in_a_file_of_its_own(tmp):
    return report_run(train_and_save, tmp, ("model", "optimizer", "scheduler"))


@fires("CK333")
def a_part_of_a_state_dict(tmp):
    def save_weight():
        torch.save({"weight": nn.Linear(2, 2).state_dict()["weight"]}, tmp / "m")

    return report_run(save_weight)


@near("CK333")
def all_keys_renamed(tmp):
    def save_renamed():
        state = nn.Linear(2, 2).state_dict()
        torch.save({f"model.{key}": value for key, value in state.items()}, tmp / "m")

    return report_run(save_renamed)


def report_resume(**differences):
    facts = {"saved_differences": (), "live_differences": (), "random_names": ()} | differences
    save = ResumedSave(file="epoch1.pt", saved_count=4, **facts)
    return judge_records((), Policy(), comparison=ResumeComparison("", "epoch0.pt", save))


@fires("CK334")
def weights_that_differ_after_a_resume(tmp):
    return report_resume(saved_differences=("model.weight",))


@near("CK334")
def a_time_that_differs_between_any_two_runs(tmp):
    return report_resume(random_names=("time",))


@fires("CK335")
def a_counter_that_begins_again(tmp):
    return report_resume(live_differences=(("`steps` of net.Net", "8", "4"),))


@near("CK335")
def a_resumed_run_that_is_the_same(tmp):
    return report_resume()
