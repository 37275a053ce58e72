"""Wrapped modules, prefixed states and optimizers in memory against files; plain torch decides."""

import copy

import pytest
import torch
from files import save, save_dcp
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from torch.optim.swa_utils import AveragedModel

import ckptool


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 3, bias=False)
        self.mask = torch.ones(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.body(x)) * self.mask)


def make_net(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net()


def tie(module: Net) -> Net:
    module.head.weight = nn.Parameter(module.body.weight.detach().t().contiguous().t())
    module.body.weight = module.head.weight = nn.Parameter(torch.ones(4, 3))
    return module


def parametrize(module: Net) -> Net:
    weight_norm(module.body)
    return module


WRAPPERS = {
    "plain": lambda module: module,
    "compiled": lambda module: torch.compile(module, backend="eager"),
    "data parallel": nn.DataParallel,
    "both": lambda module: nn.DataParallel(torch.compile(module, backend="eager")),
    "part": lambda module: nn.ModuleDict({"backbone": module}),
    "averaged": AveragedModel,
    "parametrized": parametrize,
    "tied": tie,
    "half": lambda module: module.half(),
}
WRITERS = {
    "pth": lambda path, state: torch.save(state, path),
    "old": lambda path, state: torch.save(state, path, _use_new_zipfile_serialization=False),
    "safetensors": lambda path, state: save_file(
        {key: tensor.clone().contiguous() for key, tensor in state.items()}, path
    ),
    "dcp": lambda path, state: save_dcp(state, path),
}


def find_digest(source) -> str:
    (digest,) = {checkpoint.digest for checkpoint in ckptool.digest(source).checkpoints}
    return digest


def loads_strictly(module: nn.Module, state: dict) -> bool:
    try:
        copy.deepcopy(module).load_state_dict(state)
    except RuntimeError:
        return False
    return True


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("container", WRITERS)
def test_a_wrapped_module_has_the_digest_of_its_file(wrapper, container, tmp_path):
    module = WRAPPERS[wrapper](make_net())
    path = tmp_path / f"model.{container}"
    WRITERS[container](path, module.state_dict())
    assert find_digest(module) == find_digest(path)
    other = WRAPPERS[wrapper](make_net(1))
    same = all(map(torch.equal, module.state_dict().values(), other.state_dict().values()))
    assert (find_digest(other) == find_digest(path)) == same


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("source", WRAPPERS)
def test_a_file_against_a_wrapped_module_is_what_torch_says(wrapper, source, tmp_path):
    state = WRAPPERS[source](make_net()).state_dict()
    module = WRAPPERS[wrapper](make_net(1))
    report = ckptool.diff(save(tmp_path / "model.pth", state), module=module)
    assert report.verdict.startswith(("loads strictly", "loads, but")) == loads_strictly(
        module, state
    )


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_two_wrapped_modules_differ_where_their_tensors_do(wrapper):
    old, new = WRAPPERS[wrapper](make_net()), WRAPPERS[wrapper](make_net())
    roles = ["parameter", "buffer"]
    assert ckptool.diff(old, new, roles=roles).exit_code == 0
    key = next(key for key, tensor in new.state_dict().items() if tensor.is_floating_point())
    with torch.no_grad():
        new.state_dict()[key].add_(1)
    report = ckptool.diff(old, new, roles=roles)
    assert report.exit_code == 1
    expected = {
        name
        for name, tensor in old.state_dict().items()
        if not torch.equal(tensor, new.state_dict()[name])
    }
    assert {*report.changed_keys} == expected


@pytest.mark.parametrize("wrapper", ["compiled", "data parallel", "both", "averaged"])
def test_a_prefix_is_no_difference_of_values(wrapper):
    module = make_net()
    report = ckptool.diff(module, WRAPPERS[wrapper](copy.deepcopy(module)))
    assert report.changed_keys == ()
    assert not loads_strictly(module, WRAPPERS[wrapper](copy.deepcopy(module)).state_dict())
    assert report.exit_code == 1  # the one does not load into the other


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop])
@pytest.mark.parametrize("at", ["", "optimizer"])
def test_an_optimizer_against_its_file(kind, at, tmp_path):
    module = make_net()
    optimizer = kind(module.parameters(), lr=0.1)
    for _ in range(2):
        module(torch.ones(4, 3)).sum().backward()
        optimizer.step()
    state = optimizer.state_dict()
    path = save(tmp_path / "state.pth", {at: state} if at else state)
    live = {at: optimizer.state_dict()} if at else optimizer.state_dict()
    if kind is not torch.optim.SGD:  # without momentum it has no tensors
        assert ckptool.diff(live, path).exit_code == 0
    module(torch.ones(4, 3)).sum().backward()
    optimizer.step()
    if kind is not torch.optim.SGD:
        live = {at: optimizer.state_dict()} if at else optimizer.state_dict()
        assert ckptool.diff(live, path).exit_code == 1


class Loader:
    """A loader whose position is saved, and whose epoch is not."""

    def __init__(self) -> None:
        self.position = self.epoch = 0

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.position = state["position"]


def test_a_loader_that_saves_a_part_of_its_state():
    loader = Loader()
    with ckptool.watch(loader) as watched:
        loader.position, loader.epoch = 7, 2
    text = " ".join(f"{finding.key} {finding.message}" for finding in watched.report.findings)
    assert "epoch" in text
    assert "position" not in {finding.key for finding in watched.report.findings}


@pytest.mark.parametrize(
    "make",
    [
        lambda _: torch.amp.GradScaler("cpu"),
        lambda module: torch.optim.lr_scheduler.StepLR(torch.optim.SGD(module.parameters()), 2),
        lambda module: torch.optim.AdamW(module.parameters()),
        AveragedModel,
    ],
)
def test_what_restores_all_of_its_state_has_no_finding(make):
    module = make_net()
    watched_object = make(module)
    with ckptool.watch(watched_object) as watched:
        if isinstance(watched_object, AveragedModel):
            watched_object.update_parameters(module)
        elif isinstance(watched_object, torch.optim.Optimizer):
            module(torch.ones(4, 3)).sum().backward()
            watched_object.step()
        elif isinstance(watched_object, torch.amp.GradScaler):
            watched_object.scale(torch.ones(1))
        else:
            watched_object.optimizer.step()
            watched_object.step()
    assert [f"{f.code} {f.key}" for f in watched.report.findings if f.level == "error"] == []
