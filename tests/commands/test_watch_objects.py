"""Optimizers, schedulers, samplers, ...: what changed in a `with` block and is not restored.

The truth of each case is asked of the object itself: a new one loads the state_dict().
"""

import copy
import random
import warnings

import pytest
import torch
from torch import nn

import ckptool


class Sampler:
    """Saves its epoch; `keeps_position` decides whether it saves its position."""

    def __init__(self, keeps_position: bool = False) -> None:
        self.epoch, self.position, self.keeps_position = 0, 0, keeps_position
        self.generator = torch.Generator()
        self.random = random.Random(3)

    def state_dict(self):
        state = {"epoch": self.epoch, "generator": self.generator.get_state()}
        state["random"] = self.random.getstate()
        return state | ({"position": self.position} if self.keeps_position else {})

    def load_state_dict(self, state):
        self.epoch, self.position = state["epoch"], state.get("position", 0)
        self.generator.set_state(state["generator"])
        self.random.setstate(state["random"])

    def draw(self):
        self.epoch += 1
        self.position += 7
        torch.rand(1, generator=self.generator)
        self.random.random()


class Average:
    """An average of weights that also counts, and saves what `saved` names."""

    def __init__(self, module, saved):
        self.shadow = {name: p.detach().clone() for name, p in module.named_parameters()}
        self.updates, self.is_warm, self.module, self.saved = 0, False, module, saved

    def update(self):
        self.updates += 1
        self.is_warm = True
        for name, parameter in self.module.named_parameters():
            self.shadow[name] = self.shadow[name].lerp(parameter.detach() + 1, 0.5)

    def state_dict(self):
        return {name: getattr(self, name) for name in self.saved}

    def load_state_dict(self, state):
        for name in self.saved:
            setattr(self, name, state[name])


def step(module, optimizer):
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer.step()


OPTIMIZERS = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, 0.1, momentum=0.9),
    "AdamW": torch.optim.AdamW,
    "Adagrad": torch.optim.Adagrad,
    "RMSprop": torch.optim.RMSprop,
}
SCHEDULERS = {
    "StepLR": lambda o: torch.optim.lr_scheduler.StepLR(o, 1),
    "OneCycleLR": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=9),
    "CosineAnnealingLR": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 5),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_optimizers_of_torch_save_all_that_changes(name):
    module = nn.Linear(2, 2)
    optimizer = OPTIMIZERS[name](module.parameters())
    with ckptool.watch(optimizer) as watched:
        step(module, optimizer)
    report = watched.report
    assert (report.findings, report.skipped, report.exit_code) == ((), (), 0)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_schedulers_of_torch_save_all_that_changes(name):
    module = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    scheduler = SCHEDULERS[name](optimizer)
    rates = copy.deepcopy(optimizer.param_groups[0]["lr"])
    with ckptool.watch(scheduler) as watched, ckptool.watch(optimizer) as other:
        step(module, optimizer)
        scheduler.step()
    assert rates != optimizer.param_groups[0]["lr"]  # the user's own optimizer went on
    assert (watched.report.findings, watched.report.skipped) == ((), ())
    assert (other.report.findings, other.report.skipped) == ((), ())


def test_a_grad_scaler_saves_all_that_changes():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=1)
    module = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    with ckptool.watch(scaler) as watched:
        scaler.scale(module(torch.ones(1, 2)).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() != 8.0
    assert watched.report.findings == ()


@pytest.mark.parametrize("keeps_position", [True, False])
def test_a_position_that_is_not_saved_is_named(keeps_position):
    sampler = Sampler(keeps_position)
    with ckptool.watch(sampler) as watched:
        sampler.draw()
    resumed = Sampler(keeps_position)
    resumed.load_state_dict(sampler.state_dict())
    lost = {name for name in ("epoch", "position") if vars(resumed)[name] != vars(sampler)[name]}
    assert {finding.key for finding in watched.report.findings} == lost
    if lost:
        (finding,) = watched.report.findings
        assert (finding.code, finding.level) == ("CK336", "warning")
        assert "changed from 0 to 7 inside the with block" in finding.message


@pytest.mark.parametrize(
    "saved", [(), ("shadow",), ("shadow", "updates"), ("shadow", "updates", "is_warm")]
)
def test_an_average_of_weights(saved):
    average = Average(nn.Linear(2, 2), saved)
    with ckptool.watch(average) as watched:
        average.update()
    report = watched.report
    roots = {finding.key.partition("[")[0] for finding in report.findings}
    assert roots == {"shadow", "updates", "is_warm"} - {*saved}
    levels = {finding.key.partition("[")[0]: finding.level for finding in report.findings}
    assert {levels[name] for name in roots - {"updates"}} <= {"error"}
    assert report.exit_code == bool(roots - {"updates"})
    text = ckptool.text(report)
    assert text.startswith("Average: load_state_dict() ")


def test_a_state_that_does_not_load_is_an_error():
    sampler = Sampler()
    sampler.load_state_dict = lambda state: state["nothing"]
    with ckptool.watch(sampler) as watched:
        sampler.draw()
    (finding,) = watched.report.findings
    assert (finding.code, finding.key, watched.report.exit_code) == ("CK337", "Sampler", 1)


def test_what_cannot_be_copied_is_said_not_to_be_checked():
    sampler = Sampler()
    sampler.lock = (item for item in ())  # generators cannot be copied
    with ckptool.watch(sampler) as watched:
        sampler.draw()
    assert watched.report.findings == ()
    (skipped,) = watched.report.skipped
    assert "copying it raised" in skipped.reason
    assert "position" in skipped.reason


def test_the_object_is_not_changed_by_being_watched():
    module = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(module.parameters())
    step(module, optimizer)
    before, weights = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(module.state_dict())
    random_state = torch.get_rng_state()
    with ckptool.watch(optimizer) as watched:
        pass
    assert watched.report.findings == ()
    assert torch.equal(random_state, torch.get_rng_state())
    for key, tensor in optimizer.state_dict()["state"][0].items():
        assert torch.equal(tensor, before["state"][0][key])
    assert all(torch.equal(weights[k], t) for k, t in module.state_dict().items())


@pytest.mark.parametrize("wrong", [5, "model", None, nn.Linear, Sampler, {}, object()])
def test_what_has_no_state_dict_is_refused_in_one_line(wrong):
    with pytest.raises(ckptool.CkptoolError, match="watch\\(\\) takes a live object") as caught:
        ckptool.watch(wrong)
    assert "\n" not in str(caught.value)
