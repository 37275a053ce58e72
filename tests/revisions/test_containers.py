"""Every container that an old file comes in arrives at the head, and plain torch says so."""

import json

import pytest
import torch
from files import same_bits
from migration.matrix_sources import SOURCES
from migration.matrix_truth import load_object
from paths import ROOT
from revisions import sample_nets
from revisions.sample_nets import Net1, Net6, TiedNet2
from revisions.sample_project import build_net, build_tied_net, configure
from safetensors.torch import load_file, load_model

import ckptool

pytestmark = pytest.mark.matrix

X = torch.linspace(-1, 1, 12).reshape(3, 4)
TARGETS = (".pth", ".safetensors", "")
FOLDERS = {"safetensors shards", "torch shards", "DCP", "DCP nested"}
CASES = [
    (name, suffix)
    for name in sorted(SOURCES.keys() - {"TorchScript"})
    for suffix in TARGETS
    if suffix or name in FOLDERS
]
"""Sources and the suffix of the target; "" is a folder of shards, made of a folder."""


def read_state(path, at):
    """Return the state_dict of a result as plain torch and safetensors read it."""
    if path.is_dir() and (path / "model.safetensors.index.json").exists():
        weight_map = json.loads((path / "model.safetensors.index.json").read_text())["weight_map"]
        shards = {name: load_file(path / name) for name in set(weight_map.values())}
        return {key: shards[name][key] for key, name in weight_map.items()}
    if path.suffix == ".safetensors":
        return load_file(path)
    content = load_object(path)
    for key in at:
        content = content[key]
    return content if isinstance(content, dict) else content.state_dict()


def load_result(path, module, at):
    tensors = read_state(path, at)
    if tensors.keys() >= module.state_dict().keys():
        module.load_state_dict(tensors)
    elif path.is_dir():
        assert not module.load_state_dict(tensors, strict=False).unexpected_keys
    else:
        load_model(module, path)


def write_old(name, module, folder):
    source = SOURCES[name]
    path = folder / f"old{source.suffix}"
    source.write(path, module)
    return path, ".".join(source.at) or None


@pytest.mark.parametrize(("name", "suffix"), CASES)
def test_an_old_file_in_any_container(repository, name, suffix):
    source, old = SOURCES[name], build_net(1)
    path, at = write_old(name, old, repository)
    target = repository / f"new{suffix}"
    config = configure(repository, "Net6")
    report = ckptool.upgrade(path, target, at=at, drop_extra=suffix != ".pth", config=config)
    assert report.from_revision == "0001_the_first_one"
    module = Net6().eval()
    load_result(target, module, source.at)
    assert torch.equal(module(X), old(X))
    assert ckptool.current(target, config=config).checkpoints[0].is_head
    live = Net6()
    ckptool.load(live, path, at=at, revisions=repository / "ckpt_migrations")
    for key, value in live.state_dict().items():
        assert same_bits(value, module.state_dict()[key])


@pytest.mark.parametrize(("name", "suffix"), CASES)
def test_up_and_down_again_in_any_container(repository, name, suffix):
    source, old = SOURCES[name], build_net(1)
    path, at = write_old(name, old, repository)
    config = configure(repository, "Net6")
    there, back = repository / f"there{suffix}", repository / f"back{suffix}"
    ckptool.upgrade(path, there, to="5", at=at, drop_extra=True, config=config)
    row = ckptool.current(there, config=config).checkpoints[0]
    assert (row.name, row.known_by) == ("0005_scale_in_float32", "stamped")
    report = ckptool.downgrade(there, back, to="base", config=config)
    # A prefix is not restored, and shards have digests of their own.
    is_known = not source.prefix and suffix
    assert report.is_same_as_earlier is (True if is_known else None)
    state = read_state(back, ())
    assert state.keys() == old.state_dict().keys()
    for key, value in old.state_dict().items():
        assert same_bits(state[key], value)
    Net1().load_state_dict(state)


@pytest.mark.parametrize("name", sorted(n for n in SOURCES if SOURCES[n].others))
def test_what_safetensors_cannot_store_is_one_line(repository, run_command, name):
    path, at = write_old(name, build_net(1), repository)
    configuration = '[[models]]\npath = "*"\nmodule = "revisions.sample_nets:Net6"\n'
    (repository / "ckptool.toml").write_text(configuration)
    before = sorted(p.name for p in repository.iterdir())
    words = ("upgrade", path.name, "-o", "new.safetensors", "--at", at, "-I", ROOT / "tests")
    ran = run_command(*words, cwd=repository)
    assert (ran.code, ran.out, len(ran.err.splitlines())) == (2, "", 1), ran
    assert "safetensors cannot store" in ran.err
    assert sorted(p.name for p in repository.iterdir()) == before


@pytest.fixture(scope="session")
def script_project(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("script")
        patch.chdir(folder)
        for name in ("ScriptNet1", "ScriptNet2"):
            config = configure(folder, name)
            ckptool.revision(f"state of {name}", config=config, accept_renames=True)
        return folder


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_scripted_module(script_project, tmp_path, suffix):
    old = sample_nets.ScriptNet1().eval()
    path, at = write_old("TorchScript", old, tmp_path)
    target, config = tmp_path / f"new{suffix}", configure(script_project, "ScriptNet2")
    ckptool.upgrade(path, target, at=at, config=config)
    module = sample_nets.ScriptNet2().eval()
    load_result(target, module, ())
    assert torch.equal(module(X), old(X))


@pytest.fixture(scope="session")
def tied_project(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("tied")
        patch.chdir(folder)
        for name in ("TiedNet1", "TiedNet2"):
            config = configure(folder, name)
            ckptool.revision(f"state of {name}", config=config, accept_renames=True)
        return folder


@pytest.mark.parametrize(("name", "suffix"), CASES)
def test_a_tied_file_in_any_container(tied_project, tmp_path, name, suffix):
    source, old = SOURCES[name], build_tied_net()
    path, at = write_old(name, old, tmp_path)
    target = tmp_path / f"new{suffix}"
    config = configure(tied_project, "TiedNet2")
    ckptool.upgrade(path, target, at=at, drop_extra=suffix != ".pth", config=config)
    module = TiedNet2().eval()
    load_result(target, module, source.at)
    tokens = torch.arange(5)
    new_outputs = module.head(module.body(module.embed(tokens)))
    assert torch.equal(new_outputs, old.head(old.inp(old.embed(tokens))))
    assert module.head.weight is module.embed.weight
