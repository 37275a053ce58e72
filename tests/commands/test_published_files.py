"""Files as hubs and clusters publish them: what torch says of each, and we say the same."""

import re

import pytest
import torch
from commands.test_field_cases import assert_judged_as_torch_does, codes, load_with_torch
from proportion import assert_in_proportion
from safetensors.torch import save_file
from torch import nn
from torch.testing._internal.two_tensor import TwoTensor

import ckptool
from ckptool.errors import PlanError

# Files without values: a gate without a module is an error


def save_on_meta(path):
    torch.save(nn.Linear(3, 2, device="meta").state_dict(), path)


def save_in_part_on_meta(path):
    on_meta = nn.Linear(3, 2, device="meta").state_dict(prefix="b.")
    torch.save(nn.Linear(3, 2).state_dict(prefix="a.") | on_meta, path)


def save_training_on_meta(path):
    torch.save({"model": nn.Linear(3, 2, device="meta").state_dict(), "step": torch.ones(1)}, path)


def save_lazy(path):
    torch.save({"model": nn.LazyLinear(2).state_dict(), "step": torch.ones(1)}, path)


def save_sparse_on_meta(path):
    indices, values = torch.empty(2, 3, dtype=torch.int64, device="meta"), torch.empty(3)
    sparse = torch.sparse_coo_tensor(indices, values.to("meta"), (4, 4), device="meta")
    torch.save({"w": torch.ones(2), "adjacency": sparse}, path)


def save_without_data(path):
    """Reserve space in the file, as torch.save does with the tensors of a FakeTensorMode."""
    with torch.serialization.skip_data():
        torch.save(nn.Linear(3, 2).state_dict(), path)


def save_nothing(path):
    save_file({}, path, metadata={"format": "pt"})


def save_empty_tensors(path):
    torch.save({"weight": torch.empty(0, 4), "bias": torch.empty(0)}, path)


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize(
    "save",
    [
        save_on_meta,
        save_in_part_on_meta,
        save_training_on_meta,
        save_sparse_on_meta,
        save_lazy,
        save_without_data,
        save_nothing,
        save_empty_tensors,
    ],
)
def test_a_gate_without_a_module_fails_on_a_file_without_values(save, tmp_path):
    path = tmp_path / ("model.safetensors" if save is save_nothing else "model.pth")
    try:
        save(path)
    except (RuntimeError, NotImplementedError) as error:
        pytest.skip(f"torch does not save it: {error}")
    report = ckptool.gate(path)
    assert report.exit_code == 1
    assert "CK327" in {finding.code for finding in report.findings if finding.fails}


def test_placeholders_of_zero3_fail_a_gate_without_a_module(tmp_path):
    torch.save({"module": {k: torch.empty(0) for k in ("a.weight", "b.weight")}}, tmp_path / "m.pt")
    assert codes(ckptool.gate(tmp_path / "m.pt")) == {"CK320"}


class Zeros(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(2, 2)
        nn.init.zeros_(self.a.weight)
        nn.init.zeros_(self.a.bias)


def test_zeros_that_were_written_are_values(tmp_path):
    torch.save(Zeros().state_dict(), tmp_path / "zeros.pth")
    assert ckptool.gate(tmp_path / "zeros.pth").exit_code == 0


def test_a_script_without_tensors_is_code(tmp_path):
    torch.jit.script(nn.ReLU()).save(tmp_path / "relu.pt")
    assert "CK327" not in codes(ckptool.gate(tmp_path / "relu.pt"))


@pytest.mark.parametrize("save", [save_on_meta, save_in_part_on_meta])
def test_what_the_file_lacks_is_not_migrated(save, tmp_path):
    save(tmp_path / "model.pth")
    with pytest.raises(PlanError, match="CK327"):
        ckptool.migrate(tmp_path / "model.pth", tmp_path / "new.pth", module=None)
    assert not (tmp_path / "new.pth").exists()


def test_placeholders_are_no_question_of_shapes(tmp_path):
    """A migration asked for "other arguments" of each of them."""
    state = {key: torch.empty(0) for key in Deep().state_dict()}
    torch.save({"module": state}, tmp_path / "zero_pp_rank_0_mp_rank_00_model_states.pt")
    (path,) = tmp_path.iterdir()
    assert_judged_as_torch_does(path, Deep, "module")
    with pytest.raises(PlanError, match=r"placeholders, not weights \(CK320\)"):
        ckptool.migrate(path, tmp_path / "new.pth", module=Deep())


# Prefixes of wrappers over other shapes


class Deep(nn.Module):
    def __init__(self, width=8, outputs=4):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(4, width), nn.Linear(width, outputs)) for _ in range(2)
        )


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model."])
def test_a_pruned_model_under_a_wrapper_has_other_shapes_and_no_other_keys(prefix, tmp_path):
    state = {prefix + key: value for key, value in Deep(5).state_dict().items()}
    torch.save(state, tmp_path / "pruned.pth")
    report = assert_judged_as_torch_does(tmp_path / "pruned.pth", Deep)
    assert codes(report) == {"CK207", "CK209", "CK210"}
    by_torch = load_with_torch(tmp_path / "pruned.pth", PrefixedDeep(prefix))
    reshaped = {f.key for f in report.findings if f.code == "CK207"}
    assert reshaped == set(
        re.findall(rf"size mismatch for {re.escape(prefix)}(\S+):", str(by_torch))
    )


class PrefixedDeep(nn.Module):
    """The module as the wrapper of the file has it: torch then names the sizes that differ."""

    def __init__(self, prefix):
        super().__init__()
        names = prefix.strip(".").split(".")
        inner: nn.Module = Deep()
        for name in reversed(names[1:]):
            inner = nn.ModuleDict({name: inner})
        self.add_module(names[0], inner)


def build_wide():
    return nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 6))


def test_a_wrapper_over_a_model_of_other_shapes_alone(tmp_path):
    narrow = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 7))
    torch.save({f"module.{k}": v for k, v in narrow.state_dict().items()}, tmp_path / "n.pth")
    report = assert_judged_as_torch_does(tmp_path / "n.pth", build_wide)
    assert codes(report) == {"CK207", "CK209", "CK210"}
    (fix,) = {f.fix for f in report.findings if f.code == "CK209"}
    names = {"state_dict": torch.load(tmp_path / "n.pth")}
    exec(fix.partition("in code: ")[2], names)
    assert names["state_dict"].keys() == build_wide().state_dict().keys()
    assert "ckptool migrate" not in fix  # which asks about the shapes, and writes nothing
    with pytest.raises(PlanError, match="CK207"):
        ckptool.migrate(tmp_path / "n.pth", tmp_path / "new.pth", module=build_wide())


# Layouts, and what a fix says of them


class Graph(nn.Module):
    def __init__(self, layout=torch.strided):
        super().__init__()
        adjacency = torch.eye(4)
        adjacency = adjacency if layout is torch.strided else adjacency.to_sparse(layout=layout)
        self.register_buffer("adjacency", adjacency)


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("of_module", [torch.strided, torch.sparse_coo, torch.sparse_csr])
@pytest.mark.parametrize("of_file", [torch.strided, torch.sparse_coo, torch.sparse_csr])
def test_the_fix_of_another_layout_makes_the_state_load(of_file, of_module, tmp_path):
    torch.save(Graph(of_file).state_dict(), tmp_path / "graph.pth")
    if load_with_torch(tmp_path / "graph.pth", Graph(of_module)) is None:
        assert of_file is of_module
        return
    (fix,) = {
        f.fix
        for f in ckptool.diff(tmp_path / "graph.pth", module=Graph(of_module)).findings
        if f.code == "CK223"
    }
    names = {"state_dict": torch.load(tmp_path / "graph.pth")}
    exec(fix.partition(": ")[2], names)
    Graph(of_module).load_state_dict(names["state_dict"])


def test_the_value_of_another_layout_is_not_called_another_value(tmp_path):
    torch.save(Graph(torch.sparse_coo).state_dict(), tmp_path / "graph.pth")
    assert "CK213" not in codes(ckptool.gate(tmp_path / "graph.pth", module=Graph()))


@pytest.mark.parametrize(
    ("value", "words"),
    [([0.0] * 3, "a list of 3 values"), (b"abc", "a byte string of 3"), (2.5, "2.5")],
)
def test_a_value_in_the_place_of_a_tensor_is_named_in_a_sentence(value, words, tmp_path):
    torch.save(nn.Linear(2, 3).state_dict() | {"bias": value}, tmp_path / "bias.pth")
    report = assert_judged_as_torch_does(tmp_path / "bias.pth", lambda: nn.Linear(2, 3))
    assert f"the file has {words} there" in report.verdict + str(report.findings)


# Tensors whose code the module's own import allows


def test_wrappers_that_the_import_allows_have_one_verdict(tmp_path, monkeypatch):
    """Outside of what the import had set, diff said "not checked" where verify passed."""
    (tmp_path / "wrapped_net.py").write_text(
        "import torch\nfrom torch import nn\n"
        "from torch.testing._internal.two_tensor import TwoTensor\n"
        "torch.serialization.add_safe_globals([TwoTensor])\n"
        "def build():\n"
        "    module = nn.Linear(4, 4, bias=False)\n"
        "    pair = TwoTensor(module.weight.detach(), module.weight.detach().clone())\n"
        "    module.weight = nn.Parameter(pair, requires_grad=False)\n"
        "    return module\n"
    )
    pair = TwoTensor(torch.ones(4, 4), torch.ones(4, 4))
    torch.save({"weight": pair}, tmp_path / "pair.pth")
    monkeypatch.chdir(tmp_path)
    report = ckptool.diff("pair.pth", module="wrapped_net:build")
    assert report.verdict == "loads strictly"
    checked = ckptool.verify("pair.pth", module="wrapped_net:build")
    assert {v.level: v.status for v in checked.levels}["load"] == "passed"
    assert "CK226" not in codes(ckptool.gate("pair.pth", module="wrapped_net:build"))
    # Of torch.testing nothing is written into a new file, whatever this process allows.
    with pytest.raises(PlanError, match=r"torch\.load\(weights_only=True\) would refuse `weight`"):
        ckptool.migrate("pair.pth", "new.pth", module="wrapped_net:build")
    assert TwoTensor not in torch.serialization.get_safe_globals()


def test_a_hook_that_imports_beside_its_module_is_asked(tmp_path, monkeypatch):
    """The folders of a module are importable while its loading code runs, as while it is built."""
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "old_names.py").write_text("NAMES = {'old': 'weight'}\n")
    (folder / "hooked_net.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Linear):\n"
        "    def __init__(self): super().__init__(2, 2, bias=False)\n"
        "    def _load_from_state_dict(self, state_dict, prefix, *args):\n"
        "        from old_names import NAMES\n"
        "        for old, new in NAMES.items():\n"
        "            if prefix + old in state_dict:\n"
        "                state_dict[prefix + new] = state_dict.pop(prefix + old)\n"
        "        super()._load_from_state_dict(state_dict, prefix, *args)\n"
    )
    torch.save({"old": torch.ones(2, 2)}, tmp_path / "old.pth")
    monkeypatch.chdir(tmp_path)
    report = ckptool.diff("old.pth", module="code/hooked_net.py:Net")
    assert report.verdict == "loads strictly, by the module's own upgrade of 1 key"


# Files of ranks


def test_shards_of_a_sharded_tensor_are_not_copied_into_a_release(tmp_path):
    """Its file was written again, with "nothing to do", and held one rank's part."""
    import torch.distributed as dist
    from torch.distributed._shard import sharded_tensor
    from torch.distributed._shard.sharding_spec import ChunkShardingSpec
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        spec = ChunkShardingSpec(dim=0, placements=["rank:0/cpu", "rank:1/cpu"])
        state = {key: sharded_tensor.zeros(spec, 4, 4) for key in ("a.weight", "b.weight")}
        torch.save({"model": state}, tmp_path / "rank0.pt")
    finally:
        dist.destroy_process_group()
    assert isinstance(
        load_with_torch(tmp_path / "rank0.pt", nn.Linear(4, 4), "model"), RuntimeError
    )
    with pytest.raises(PlanError, match="CK604"):
        ckptool.migrate(tmp_path / "rank0.pt", tmp_path / "new.pth", module=None)


# Loading code


class SavesScale(nn.Linear):
    """Writes a key that its load does not take out, with a name that bitsandbytes uses."""

    def __init__(self):
        super().__init__(4, 4)
        self.scale = torch.ones(4)

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "gain.absmax"] = self.scale


def test_a_key_that_a_class_writes_and_does_not_read_is_no_quantisation(tmp_path):
    torch.save(SavesScale().state_dict(), tmp_path / "scale.pth")
    report = assert_judged_as_torch_does(tmp_path / "scale.pth", SavesScale)
    assert {"CK114", "CK223"} <= codes(report)
    assert "CK235" not in codes(report) | codes(ckptool.gate(tmp_path / "scale.pth"))
    (fix,) = {f.fix for f in report.findings if f.code == "CK223"}
    assert "CK114" in fix


def test_the_code_for_a_part_under_a_wrapper_loads_it(tmp_path):
    state = {f"model.blocks.{k}": v for k, v in Deep().blocks.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "part.ckpt")
    report = assert_judged_as_torch_does(tmp_path / "part.ckpt", Deep, "state_dict")
    (fix,) = {f.fix for f in report.findings if f.code == "CK224"}
    names = {"state_dict": state, "module": Deep()}
    exec(fix.partition("in code: ")[2], names)
    loaded = names["module"].blocks.state_dict()
    assert all(torch.equal(loaded[key], state[f"model.blocks.{key}"]) for key in loaded)


class Stage(nn.Module):
    def __init__(self, width, *, ends_in_merge=False, starts_with_merge=False):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        if ends_in_merge:
            self.downsample = nn.Linear(width, 2 * width)
        if starts_with_merge:
            self.downsample = nn.Linear(width // 2, width)


def build_stages(*, merges_at_the_end):
    module = nn.Module()
    module.layers = nn.ModuleList(
        Stage(
            4 * 2**i,
            ends_in_merge=merges_at_the_end and i < 3,
            starts_with_merge=not merges_at_the_end and i > 0,
        )
        for i in range(4)
    )
    return module


def test_a_layer_that_moved_to_the_next_stage_is_renumbered(tmp_path):
    """As timm's Swin did: layers.0.downsample is layers.1.downsample since 0.9."""
    old, new = build_stages(merges_at_the_end=True), build_stages(merges_at_the_end=False)
    torch.save({"model": old.state_dict(), "epoch": 3}, tmp_path / "old.pth")
    report = assert_judged_as_torch_does(
        tmp_path / "old.pth", lambda: build_stages(merges_at_the_end=False), "model"
    )
    assert "CK211" in codes(report)
    ckptool.migrate(tmp_path / "old.pth", tmp_path / "new.pth", module=new, accept_renames=True)
    new.load_state_dict(torch.load(tmp_path / "new.pth")["model"])
    for i in range(3):
        assert torch.equal(new.layers[i + 1].downsample.weight, old.layers[i].downsample.weight)


# Beside the state


def test_a_scheduler_with_a_bound_method_is_one_difference(tmp_path):
    """Each entry of the scheduler was called different, since the other file's was one part."""
    module = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(module.parameters())
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=10)
    states = {"state_dict": module.state_dict(), "lr_scheduler": scheduler.state_dict()}
    torch.save(states, tmp_path / "clean.pth")
    bound = {**states["lr_scheduler"], "anneal_func": scheduler.get_lr}
    torch.save({**states, "lr_scheduler": bound}, tmp_path / "bound.pth")
    report = ckptool.diff(tmp_path / "bound.pth", tmp_path / "clean.pth")
    assert (report.verdict, report.changed_entries) == ("plain data differs", ("lr_scheduler",))
    ckptool.migrate(
        tmp_path / "bound.pth", tmp_path / "new.safetensors", at="state_dict", drop_extra=True
    )
    assert ckptool.diff(tmp_path / "new.safetensors", module=module).verdict == "loads strictly"


@pytest.mark.parametrize("command", ["inspect", "gate", "digest"])
def test_many_states_take_their_number_of_steps(command, tmp_path):
    """Every state asked every other whether it lies within it."""

    def run(count):
        path = tmp_path / f"{count}.pth"
        if not path.exists():
            torch.save({f"s{i}": {"w": torch.ones(1)} for i in range(count)}, path)
        options = {"values": False} if command == "gate" else {}
        return getattr(ckptool, command)(path, **options)

    assert_in_proportion(run, 300)
