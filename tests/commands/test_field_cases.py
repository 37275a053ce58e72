"""Files as training loops and tools leave them: what torch says of each, and we say the same."""

import pickle
import zipfile

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import ckptool


def load_with_torch(path, module, place=None):
    """Load strictly as a user would who trusts the file; return what torch raises, or None."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=False)
        module.load_state_dict(content if place is None else content[place])
    except Exception as error:  # noqa: BLE001 (torch raises what it likes)
        return error
    return None


def assert_judged_as_torch_does(path, build, place=None, *, name=""):
    """Hold diff and verify's first level to what a strict load does; return the diff's report.

    `name` is that of `build` where a module that it built cannot be copied.
    """
    is_loaded = load_with_torch(path, build(), place) is None
    named = f"{__name__}:{name}"
    report = ckptool.diff(path, module=named if name else build())
    assert report.verdict.startswith("loads") == is_loaded, report.verdict
    checked = ckptool.verify(path, module=named if name else build())
    level = next(v for v in checked.levels if v.level == "load")
    assert (level.status == "passed") == is_loaded, level
    return report


def codes(report):
    return {finding.code for finding in report.findings}


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3)
        self.bn = nn.BatchNorm1d(3)


# Where the bytes are: other devices, other byte orders, nowhere


class SavedFromXla:
    """Is pickled as torch.save does with a tensor on a TPU: as a NumPy array and a device."""

    def __init__(self, tensor):
        self.tensor = tensor

    def __reduce__(self):
        arguments = (self.tensor.numpy(), self.tensor.dtype, "xla:1", False)
        return torch._utils._rebuild_device_tensor_from_numpy, arguments


def test_tensors_saved_on_a_tpu_are_read_with_their_values(tmp_path):
    state = Normed().state_dict()
    torch.save({k: SavedFromXla(v) for k, v in state.items()}, tmp_path / "xla.pt")
    report = ckptool.inspect(tmp_path / "xla.pt")
    (described,) = report.checkpoints[0].states
    assert {t.device for t in described.tensors} == {"xla:1"}
    assert ckptool.diff(tmp_path / "xla.pt", module=Normed()).verdict == "loads strictly"
    ckptool.migrate(tmp_path / "xla.pt", tmp_path / "new.pth", module=Normed())
    written = torch.load(tmp_path / "new.pth", map_location="cpu", weights_only=False)
    assert all(torch.equal(written[k], v) for k, v in state.items())
    # Names of NumPy: torch.load refuses the file by default, and so does a gate.
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "xla.pt", map_location="cpu", weights_only=True)
    assert ckptool.gate(tmp_path / "xla.pt", module=Normed(), values=False).exit_code == 1


def rewrite(path, target, change):
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w") as archive:
        for name in source.namelist():
            archive.writestr(name, change(name, source.read(name)))


@pytest.mark.parametrize(
    "tag", ["npu:0", "hpu:0", "mps:0", "xpu:0", "cuda:9", "privateuseone:0", "meta"]
)
def test_a_tag_of_a_device_that_is_not_here(tag, tmp_path):
    torch.save(nn.Linear(4, 3).state_dict(), tmp_path / "cpu.pth")
    pickled = b"X" + len(tag).to_bytes(4, "little") + tag.encode()

    def retag(name, data):
        return data.replace(b"X\3\0\0\0cpu", pickled) if name.endswith("data.pkl") else data

    rewrite(tmp_path / "cpu.pth", tmp_path / "tagged.pth", retag)
    report = assert_judged_as_torch_does(tmp_path / "tagged.pth", lambda: nn.Linear(4, 3))
    assert report.verdict == "loads strictly"  # as the fix says: with map_location="cpu"
    assert [f.key for f in report.findings if f.code == "CK307"] == [tag]


def test_a_tensor_without_elements_on_meta_does_not_load(tmp_path):
    """There is nothing to copy, and torch refuses it all the same."""
    state = {"0": torch.empty(3, 0, device="meta"), "1": torch.ones(3)}
    torch.save(state, tmp_path / "meta.pth")
    report = assert_judged_as_torch_does(
        tmp_path / "meta.pth", lambda: nn.ParameterList([torch.ones(3, 0), torch.ones(3)])
    )
    assert "Cannot copy out of meta tensor" in report.verdict


@pytest.mark.parametrize("on_meta", [["1"], ["0", "1"]])
def test_weights_on_meta_have_no_bytes_and_do_not_load(on_meta, tmp_path):
    def build():
        return nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))

    saved = build()
    for name in on_meta:
        saved.get_submodule(name).to("meta")
    torch.save(saved.state_dict(), tmp_path / "meta.pth")
    report = assert_judged_as_torch_does(tmp_path / "meta.pth", build)
    assert "no data" in report.verdict
    assert {f.fix[:13] for f in report.findings if f.code == "CK223"} == {"Save it again"}
    assert ckptool.gate(tmp_path / "meta.pth", module=build(), values=False).exit_code == 1
    same = ckptool.diff(tmp_path / "meta.pth", tmp_path / "meta.pth")
    assert (same.verdict, same.skipped) == ("identical", ())


def test_a_file_of_the_other_byte_order_has_the_same_values(tmp_path):
    class Net(nn.Linear):
        def __init__(self):
            super().__init__(4, 3)
            self.index = nn.Parameter(torch.arange(3.0), requires_grad=False)

    def swap(name, data):
        if name.endswith("byteorder"):
            return b"big"
        return np.frombuffer(data, "<f4").byteswap().tobytes() if "/data/" in name else data

    torch.save(Net().state_dict(), tmp_path / "little.pth")
    rewrite(tmp_path / "little.pth", tmp_path / "big.pth", swap)
    by_torch = [torch.load(tmp_path / f"{name}.pth") for name in ("little", "big")]
    assert all(torch.equal(by_torch[0][key], by_torch[1][key]) for key in by_torch[0])
    assert ckptool.diff(tmp_path / "little.pth", tmp_path / "big.pth").verdict == "identical"
    assert_judged_as_torch_does(tmp_path / "big.pth", Net)


# What stands under a key


class Graph(nn.Module):
    layout = torch.strided

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)
        adjacency = torch.eye(4)
        if self.layout is not torch.strided:
            adjacency = adjacency.to_sparse(layout=self.layout)
        self.register_buffer("adjacency", adjacency)


class CooGraph(Graph):
    layout = torch.sparse_coo


class CsrGraph(Graph):
    layout = torch.sparse_csr


@pytest.mark.filterwarnings("ignore:Sparse CSR")
@pytest.mark.parametrize("of_module", [Graph, CooGraph, CsrGraph])
@pytest.mark.parametrize("of_file", [Graph, CooGraph, CsrGraph])
def test_a_sparse_buffer_loads_into_one_of_its_own_layout(of_file, of_module, tmp_path):
    torch.save(of_file().state_dict(), tmp_path / "graph.pth")
    name = of_module.__name__
    report = assert_judged_as_torch_does(tmp_path / "graph.pth", of_module, name=name)
    assert ("CK223" in codes(report)) == (of_file is not of_module)


@pytest.mark.filterwarnings("ignore:.*quantized tensor creation", "ignore:TypedStorage")
def test_a_quantised_tensor_under_a_float_key(tmp_path):
    state = nn.Linear(4, 3).state_dict()
    state["weight"] = torch.quantize_per_tensor(state["weight"], 0.1, 0, torch.qint8)
    torch.save(state, tmp_path / "quantised.pth")
    report = assert_judged_as_torch_does(tmp_path / "quantised.pth", lambda: nn.Linear(4, 3))
    assert "CK219" in codes(report)


@pytest.mark.parametrize("dump", [torch.save, "pickle"])
def test_arrays_of_numpy_beside_notes_are_written_as_tensors(dump, tmp_path):
    state = Normed().state_dict()
    content = {"model": {k: v.numpy() for k, v in state.items()}, "__author__": "x"}
    path = tmp_path / "zoo.pkl"
    if dump == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        dump(content, path)
    assert load_with_torch(path, Normed(), "model") is not None
    report = ckptool.diff(path, module=Normed())
    assert report.verdict == "does not load: 7 without a tensor"
    assert not report.missing_keys + report.unexpected_keys
    ckptool.migrate(path, tmp_path / "new.pth", module=Normed())
    assert load_with_torch(tmp_path / "new.pth", Normed(), "model") is None


# Modules that load in ways of their own


class KeepsMetric(nn.Module):
    """Holds an accuracy as torchmetrics does: not in the state_dict until persistent()."""

    def __init__(self, is_persistent=False):
        super().__init__()
        self.fc = nn.Linear(4, 3)
        self.is_persistent, self.correct = is_persistent, torch.tensor(0)

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.is_persistent:
            destination[prefix + "correct"] = self.correct

    def _load_from_state_dict(self, state_dict, prefix, *args):
        if prefix + "correct" in state_dict:
            self.correct = state_dict.pop(prefix + "correct")
        super()._load_from_state_dict(state_dict, prefix, *args)


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("loaded", [False, True])
def test_a_metric_that_takes_its_state_out_while_it_loads(saved, loaded, tmp_path):
    torch.save(KeepsMetric(saved).state_dict(), tmp_path / "metric.pth")
    assert_judged_as_torch_does(tmp_path / "metric.pth", lambda: KeepsMetric(loaded))


class LooksUp(nn.Linear):
    """Has a hook that ends in a KeyError where the file lacks its key."""

    def __init__(self):
        super().__init__(4, 4, bias=False)
        self.register_load_state_dict_pre_hook(LooksUp.look_up)

    @staticmethod
    def look_up(module, state_dict, prefix, *args):
        state_dict[prefix + "weight"]


@pytest.mark.parametrize("key", ["conv.lin.weight", "conv.weight"])
def test_a_hook_that_raises_without_its_key(key, tmp_path):
    def build():
        return nn.ModuleDict({"conv": nn.ModuleDict({"lin": LooksUp()})})

    torch.save({key: torch.ones(4, 4)}, tmp_path / "conv.pth")
    assert_judged_as_torch_does(tmp_path / "conv.pth", build)


@pytest.mark.filterwarnings("ignore")  # torch.ao.quantization is deprecated
def test_observers_that_grew_in_training(tmp_path):
    from torch.ao import quantization

    def build():
        module = nn.Sequential(quantization.QuantStub(), nn.Conv2d(3, 8, 3), nn.ReLU()).train()
        module.qconfig = quantization.get_default_qat_qconfig("fbgemm")
        return quantization.prepare_qat(module)

    trained = build()
    trained(torch.randn(2, 3, 8, 8))
    grown = {k for k, v in trained.state_dict().items() if v.shape != build().state_dict()[k].shape}
    torch.save({"model": trained.state_dict()}, tmp_path / "qat.pth")
    report = assert_judged_as_torch_does(tmp_path / "qat.pth", build, "model")
    assert grown
    assert report.verdict == f"loads strictly, by the module's own upgrade of {len(grown)} keys"


def build_orthogonal(*, is_wrapped):
    layer = nn.Linear(4, 4)
    return parametrizations.orthogonal(layer) if is_wrapped else layer


@pytest.mark.parametrize("of_module", [False, True])
@pytest.mark.parametrize("of_file", [False, True])
def test_a_plain_and_an_orthogonal_weight(of_file, of_module, tmp_path):
    torch.save(build_orthogonal(is_wrapped=of_file).state_dict(), tmp_path / "w.pth")
    report = assert_judged_as_torch_does(
        tmp_path / "w.pth", lambda: build_orthogonal(is_wrapped=of_module)
    )
    assert ("CK217" in codes(report)) == (of_file != of_module)


def build_old_weight_norm():
    return nn.utils.weight_norm(nn.Conv1d(4, 4, 3))


def build_weight_norm():
    return parametrizations.weight_norm(nn.Conv1d(4, 4, 3))


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("of_module", [build_old_weight_norm, build_weight_norm])
@pytest.mark.parametrize("of_file", [build_old_weight_norm, build_weight_norm])
def test_the_two_forms_of_weight_norm_beside_a_configuration(of_file, of_module, tmp_path):
    state = {key: tensor.half() for key, tensor in of_file().state_dict().items()}
    path = tmp_path / "generator.pth"
    torch.save({"weight": state, "config": [1025, 32], "sr": "40k", "f0": 1}, path)
    report = assert_judged_as_torch_does(path, of_module, "weight", name=of_module.__name__)
    assert ("CK217" in codes(report)) == (of_file is not of_module)


class InContainers(nn.Module):
    def __init__(self):
        super().__init__()
        self.d = nn.ParameterDict({"a": torch.ones(2), "scale": 2.0, "t": torch.ones(3)})
        self.parts = nn.ParameterList([torch.ones(2)])
        self.parts.append(torch.zeros(1))


def test_parameters_in_containers_with_a_number_between(tmp_path):
    torch.save(InContainers().state_dict(), tmp_path / "pd.pth")
    assert_judged_as_torch_does(tmp_path / "pd.pth", InContainers)


# Other sizes and other names


class Splats(nn.Module):
    def __init__(self, points):
        super().__init__()
        self.xyz = nn.Parameter(torch.zeros(points, 3))
        self.opacity = nn.Parameter(torch.zeros(points, 1))


def test_a_point_cloud_that_grew_in_training(tmp_path):
    torch.save(Splats(250).state_dict(), tmp_path / "splats.pth")
    report = assert_judged_as_torch_does(tmp_path / "splats.pth", lambda: Splats(100))
    assert {*report.mismatched_keys} == {"xyz", "opacity"}
    assert_judged_as_torch_does(tmp_path / "splats.pth", lambda: Splats(250))


def test_parameters_in_a_tuple_beside_their_optimizer(tmp_path):
    """3DGS writes a tuple: it is no state_dict, and the optimizer's state in it is none either."""
    trained = Splats(250)
    optimizer = torch.optim.Adam(trained.parameters())
    sum(p.sum() for p in trained.parameters()).backward()
    optimizer.step()
    captured = (3, *trained.parameters(), optimizer.state_dict(), 5.0)
    torch.save((captured, 30000), tmp_path / "chkpnt.pth")
    assert isinstance(load_with_torch(tmp_path / "chkpnt.pth", Splats(250), 0), TypeError)
    report = ckptool.diff(tmp_path / "chkpnt.pth", module=Splats(250))
    assert (report.at, report.missing_keys) == ("0", ("xyz", "opacity"))


def build_deep(width):
    return nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, width), nn.Linear(width, 4)))


def test_a_pruned_model_is_of_another_shape(tmp_path):
    torch.save(build_deep(5).state_dict(), tmp_path / "pruned.pth")
    report = assert_judged_as_torch_does(tmp_path / "pruned.pth", lambda: build_deep(8))
    assert {*report.mismatched_keys} == {"1.0.weight", "1.0.bias", "1.1.weight"}


def build_mlp(*between):
    """Build three layers of one shape with other layers between them, as an nn.Sequential."""
    layers = [nn.Linear(4, 4)]
    for _ in range(2):
        layers += [*(kind() for kind in between), nn.Linear(4, 4)]
    return nn.Sequential(*layers)


def test_indices_that_a_dropout_moved_are_asked_and_then_exact(tmp_path):
    saved, module = build_mlp(nn.ReLU).eval(), build_mlp(nn.ReLU, nn.Dropout).eval()
    torch.save(saved.state_dict(), tmp_path / "old.pth")
    report = assert_judged_as_torch_does(
        tmp_path / "old.pth", lambda: build_mlp(nn.ReLU, nn.Dropout)
    )
    assert "CK211" in codes(report)
    ckptool.migrate(tmp_path / "old.pth", tmp_path / "new.pth", module=module, accept_renames=True)
    module.load_state_dict(torch.load(tmp_path / "new.pth"))
    x = torch.randn(2, 4)
    assert torch.equal(module(x), saved(x))


@pytest.mark.parametrize(
    "prefix", ["model.", "base_model.model.", "module.base_model.model.", "module.model."]
)
def test_the_code_of_a_wrappers_fix_makes_the_state_load(prefix, tmp_path):
    """An inner `model` stays, as in a LightningModule that holds a LlamaForCausalLM."""

    def build():
        return nn.ModuleDict({"model": nn.Sequential(nn.Linear(3, 4)), "head": nn.Linear(4, 2)})

    state = {prefix + key: value for key, value in build().state_dict().items()}
    torch.save(state, tmp_path / "wrapped.pth")
    report = assert_judged_as_torch_does(tmp_path / "wrapped.pth", build)
    (fix,) = {f.fix for f in report.findings if f.code == "CK209"}
    names = {"state_dict": state}
    exec(fix.partition("in code: ")[2], names)
    build().load_state_dict(names["state_dict"])
    ckptool.migrate(tmp_path / "wrapped.pth", tmp_path / "new.pth", module=build())
    assert load_with_torch(tmp_path / "new.pth", build()) is None


class AnchorHead(nn.Module):
    """Keeps grids in lists, as YOLO's head does: made in forward(), and never saved."""

    def __init__(self):
        super().__init__()
        self.grid, self.stride = [torch.empty(0)], torch.zeros(1)
        self.register_buffer("anchors", torch.tensor([[10.0, 13.0], [16.0, 30.0]]))
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        x = self.conv(x)
        if self.grid[0].shape[-2:] != x.shape[-2:]:
            self.grid[0] = torch.ones_like(x[0])
        return (x + self.grid[0]) * self.stride


class Detector(nn.Module):
    def __init__(self, moves_lists=True):
        super().__init__()
        self.head, self.moves_lists = AnchorHead(), moves_lists
        self.head.stride = torch.tensor([8.0])
        self.head.anchors /= 8

    def forward(self, x):
        return self.head(x)

    def _apply(self, fn):
        super()._apply(fn)
        if self.moves_lists:
            self.head.stride = fn(self.head.stride)
            self.head.grid = [fn(grid) for grid in self.head.grid]
        return self


@pytest.mark.parametrize("moves_lists", [True, False])
def test_a_detector_whose_grids_are_made_in_forward(moves_lists, tmp_path):
    trained = Detector(moves_lists).eval()
    trained(torch.ones(1, 3, 4, 4))
    torch.save(trained.state_dict(), tmp_path / "yolo.pth")
    report = assert_judged_as_torch_does(tmp_path / "yolo.pth", lambda: Detector(moves_lists))
    assert not report.missing_keys + report.unexpected_keys
    unsaved = {f.key for f in report.findings if f.code in {"CK101", "CK102", "CK103", "CK104"}}
    assert "head.stride" in unsaved or "head.stride" in {t.key for t in report.unsaved}
    # What Module.to() leaves behind without the override is said of the same attribute.
    audited = ckptool.audit(lambda: Detector(moves_lists))
    stays = {f.key for f in audited.findings if f.code == "CK110"}
    assert ("head.stride" in stays) == (not moves_lists)
    torch.save({"model": trained, "ema": None}, tmp_path / "whole.pt")
    whole = ckptool.diff(tmp_path / "whole.pt", module=Detector(moves_lists))
    assert whole.verdict == report.verdict
    assert whole.at == "model"
