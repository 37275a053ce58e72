"""Every container that an old file comes in arrives at the head, and plain torch says so."""

import pytest
import torch
from migration.matrix_sources import SOURCES
from migration.matrix_truth import load_object
from revisions.sample_nets import Net6, TiedNet2
from revisions.sample_project import build_net, build_tied_net, configure
from safetensors.torch import load_file, load_model

import ckptool

pytestmark = pytest.mark.matrix

X = torch.linspace(-1, 1, 12).reshape(3, 4)
TARGETS = (".pth", ".safetensors")
NAMES = sorted(SOURCES.keys() - {"TorchScript"})


def load_result(path, module, at):
    if path.suffix == ".safetensors":
        tensors = load_file(path)
        if tensors.keys() >= module.state_dict().keys():
            module.load_state_dict(tensors)
        else:
            load_model(module, path)
        return
    content = load_object(path)
    for key in at:
        content = content[key]
    state = content if isinstance(content, dict) else content.state_dict()
    module.load_state_dict(state)


@pytest.mark.parametrize("suffix", TARGETS)
@pytest.mark.parametrize("name", NAMES)
def test_an_old_file_in_any_container(repository, name, suffix):
    source, old = SOURCES[name], build_net(1)
    path = repository / f"old{source.suffix}"
    source.write(path, old)
    at = ".".join(source.at) or None
    target = repository / f"new{suffix}"
    config = configure(repository, "Net6")
    report = ckptool.upgrade(path, target, at=at, drop_extra=suffix != ".pth", config=config)
    assert report.from_revision == "0001_the_first_one"
    module = Net6().eval()
    load_result(target, module, source.at)
    assert torch.equal(module(X), old(X))
    assert ckptool.current(target, config=config).checkpoints[0].is_head


@pytest.fixture(scope="session")
def tied_project(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("tied")
        patch.chdir(folder)
        for name in ("TiedNet1", "TiedNet2"):
            config = configure(folder, name)
            ckptool.revision(f"state of {name}", config=config, accept_renames=True)
        return folder


@pytest.mark.parametrize("suffix", TARGETS)
@pytest.mark.parametrize("name", NAMES)
def test_a_tied_file_in_any_container(tied_project, tmp_path, name, suffix):
    source, old = SOURCES[name], build_tied_net()
    path, target = tmp_path / f"old{source.suffix}", tmp_path / f"new{suffix}"
    source.write(path, old)
    at = ".".join(source.at) or None
    config = configure(tied_project, "TiedNet2")
    ckptool.upgrade(path, target, at=at, drop_extra=suffix != ".pth", config=config)
    module = TiedNet2().eval()
    load_result(target, module, source.at)
    tokens = torch.arange(5)
    new_outputs = module.head(module.body(module.embed(tokens)))
    assert torch.equal(new_outputs, old.head(old.inp(old.embed(tokens))))
    assert module.head.weight is module.embed.weight
