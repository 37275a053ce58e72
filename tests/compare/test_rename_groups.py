"""Renames: what is proposed loads strictly in torch and computes what the old module did."""

import re
from itertools import pairwise

import pytest
import torch
from builders import checkpoint, held, module, state, tensor
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import examples
from torch import nn

import ckptool
from ckptool.compare.module_comparison import build_module_diff
from ckptool.compare.rename_search.key_patterns import is_exact_pattern
from ckptool.compare.rename_search.search import find_rename_groups
from ckptool.model import Kind


class Attention(nn.Module):
    def __init__(self, size, out="proj_out"):
        super().__init__()
        self.qkv = nn.Linear(size, 3 * size)
        self.out_name = out
        setattr(self, out, nn.Linear(size, size))

    def forward(self, x):
        return getattr(self, self.out_name)(self.qkv(x)[..., : x.shape[-1]])


class Block(nn.Module):
    def __init__(self, size, out="proj_out", first="fc1", second="fc2"):
        super().__init__()
        self.attn = Attention(size, out)
        self.norm = nn.LayerNorm(size)
        self.mlp = nn.ModuleDict(
            {first: nn.Linear(size, 2 * size), second: nn.Linear(2 * size, size)}
        )
        self.names = (first, second)

    def forward(self, x):
        first, second = self.names
        x = x + self.attn(self.norm(x))
        return x + self.mlp[second](self.mlp[first](x).relu())


class Net(nn.Module):
    """Blocks at `path`, and a head."""

    def __init__(self, path, count=3, size=4, head="head", **names):
        super().__init__()
        *outer, last = path.split(".")
        inner: nn.Module = nn.Sequential(*(Block(size, **names) for _ in range(count)))
        for name in [last, *reversed(outer)]:
            inner = nn.ModuleDict({name: inner})
        for name, child in inner.items():
            self.add_module(name, child)
        self.path, self.head_name = path, head
        self.add_module(head, nn.Linear(size, 3))

    def forward(self, x):
        return self.get_submodule(self.head_name)(self.get_submodule(self.path)(x))


class Dense(nn.Module):
    """DenseNet's keys before torchvision 0.3, and after."""

    def __init__(self, dot):
        super().__init__()
        self.features = nn.Sequential()
        self.dot = dot
        for number in range(3):
            layer, width = nn.Module(), 4 + 2 * number
            for name, child in (
                ("norm1", nn.BatchNorm2d(width)), ("conv1", nn.Conv2d(width, 4, 1)),
                ("norm2", nn.BatchNorm2d(4)), ("conv2", nn.Conv2d(4, 2, 1)),
            ):  # fmt: skip
                if dot:
                    kind, index = name[:-1], name[-1]
                    if not hasattr(layer, kind):
                        layer.add_module(kind, nn.Module())
                    layer.get_submodule(kind).add_module(index, child)
                else:
                    layer.add_module(name, child)
            self.features.add_module(f"denselayer{number + 1}", layer)

    def forward(self, x):
        x = torch.cat([x, x], -1)[:, :4, None, None]
        for layer in self.features.children():
            dot = "." if self.dot else ""
            y = x
            for name in ("norm1", "conv1", "norm2", "conv2"):
                y = layer.get_submodule(f"{name[:-1]}{dot}{name[-1]}")(y)
            x = torch.cat([x, y], 1)
        return x


class Stages(nn.Module):
    """Swin's patch merging: at the end of a stage once, at the beginning of the next today."""

    def __init__(self, shift):
        super().__init__()
        self.shift = shift
        self.layers = nn.ModuleList()
        for n in range(4):
            layer = nn.Module()
            layer.blocks = nn.Sequential(nn.Linear(4 * 2**n, 4 * 2**n))
            self.layers.append(layer)
        for n in range(3):
            merge = nn.Sequential(nn.LayerNorm(4 * 2**n), nn.Linear(4 * 2**n, 8 * 2**n, bias=False))
            self.layers[n + shift].downsample = merge

    def forward(self, x):
        for n in range(4):
            if self.shift and n:
                x = self.layers[n].downsample(x)
            x = self.layers[n].blocks(x)
            if not self.shift and n < 3:
                x = self.layers[n].downsample(x)
        return x


def chain(numbers, sizes, *others):
    """Linear layers at these places of a Sequential, what `others` has (place, module) between."""
    places = dict(zip(numbers, (nn.Linear(a, b) for a, b in pairwise(sizes)),
                      strict=True)) | dict(others)  # fmt: skip
    net = nn.Sequential(*(places.get(n, nn.Identity()) for n in range(max(places) + 1)))
    return nn.ModuleDict({"net": net})


class Called(nn.Module):
    """A ModuleDict of one module, called."""

    def __init__(self, inner):
        super().__init__()
        for name, child in inner.items():
            self.add_module(name, child)

    def forward(self, x):
        for child in self.children():
            x = child(x)
        return x


def find_groups(old_state, new_module):
    """Return the groups for a state and a module, as `diff` finds them."""
    new_state = new_module.state_dict()
    buffers = {key for key, _ in new_module.named_buffers()}
    entries = [
        held(tensor(key, tuple(t.shape)), Kind.BUFFER if key in buffers else Kind.PARAMETER)
        for key, t in new_state.items()
    ]
    info = module(*entries)
    file = checkpoint(state(*(tensor(key, tuple(t.shape)) for key, t in old_state.items())))
    return build_module_diff(file, info, None).rename_groups


def rename(old_state, groups):
    pairs = {old: new for group in groups for old, new in group.pairs.items()}
    transposed = {key for group in groups for key in group.transposed_keys}
    assert len({*pairs.values()}) == len(pairs) == sum(len(group.pairs) for group in groups)
    return {
        pairs.get(key, key): t.T.contiguous() if key in transposed else t
        for key, t in old_state.items()
    }


def assert_right(old, new, groups):
    """Assert that the renamed state loads strictly, and that both modules compute the same."""
    new.load_state_dict(rename(old.state_dict(), groups), strict=True)
    x = torch.randn(2, 4)
    assert torch.equal(old.eval()(x), new.eval()(x))


def net(path, **names):
    return lambda: Net(path, **names)


CASES = {
    "a subtree": (net("backbone"), net("encoder"), ["backbone.* -> encoder.*"]),
    "a subtree below": (net("m.backbone"), net("m.encoder"), ["m.backbone.* -> m.encoder.*"]),
    "moved deeper": (net("layers"), net("encoder.layers"), ["layers.* -> encoder.layers.*"]),
    "moved deeper by two": (net("layers"), net("a.b.layers"), ["layers.* -> a.b.layers.*"]),
    "moved up": (net("encoder.layers"), net("layers"), ["encoder.layers.* -> layers.*"]),
    "one block only": (net("layers", count=1), net("blocks", count=1), ["layers.* -> blocks.*"]),
    "subtree and head": (
        net("backbone", head="fc"), net("encoder"),
        ["backbone.* -> encoder.*", "fc.* -> head.*"],
    ),
    "a leaf in every block": (
        net("layers"), net("layers", out="out"),
        ["layers.*.attn.proj_out.* -> layers.*.attn.out.*"],
    ),
    "a leaf in one block": (
        net("layers", count=1), net("layers", count=1, out="out"),
        ["layers.0.attn.proj_out.* -> layers.0.attn.out.*"],
    ),
    "two leaves in every block": (
        net("layers"), net("layers", first="up", second="down"),
        ["layers.*.mlp.fc1.* -> layers.*.mlp.up.*", "layers.*.mlp.fc2.* -> layers.*.mlp.down.*"],
    ),
    "a leaf in a subtree that moved": (
        net("backbone"), net("encoder", out="out"),
        ["backbone.*.attn.proj_out.* -> encoder.*.attn.out.*", "backbone.* -> encoder.*"],
    ),
    "numbers become names": (
        net("layers", first="0", second="2"), net("layers", first="up", second="down"),
        ["layers.*.mlp.0.* -> layers.*.mlp.up.*", "layers.*.mlp.2.* -> layers.*.mlp.down.*"],
    ),
    "DenseNet": (
        lambda: Dense(dot=True), lambda: Dense(dot=False),
        ["features.denselayer*.conv.*.* -> features.denselayer*.conv*.*",
         "features.denselayer*.norm.*.* -> features.denselayer*.norm*.*"],
    ),
    "Swin": (
        lambda: Stages(0), lambda: Stages(1),
        ["layers.{0..2}.downsample.* -> layers.{1..3}.downsample.*"],
    ),
    "ReLUs removed": (
        lambda: Called(chain([0, 2, 4], [4, 8, 6, 2])),
        lambda: Called(chain([0, 1, 2], [4, 8, 6, 2])),
        ["net.{2,4}.* -> net.{1,2}.*"],
    ),
    "Dropouts added, middle layers alike": (
        lambda: Called(chain([0, 2, 4, 6], [4, 8, 8, 8, 2])),
        lambda: Called(chain([0, 3, 6, 9], [4, 8, 8, 8, 2])),
        ["net.{2,4,6}.* -> net.{3,6,9}.*"],
    ),
    "another list": (
        lambda: Called({"a": chain([0, 2], [4, 5, 2])["net"]}),
        lambda: Called({"b": chain([0, 3], [4, 5, 2])["net"]}),
        ["a.{0,2}.* -> b.{0,3}.*"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_one_group_for_one_change_of_the_code(name):
    make_old, make_new, expected = CASES[name]
    torch.manual_seed(0)
    old, new = make_old(), make_new()
    groups = find_groups(old.state_dict(), new)
    assert [f"{group.old_pattern} -> {group.new_pattern}" for group in groups] == expected
    assert all(group.is_unambiguous for group in groups)
    assert_right(old, new, groups)


@pytest.mark.parametrize("name", [n for n in CASES if n != "a leaf in a subtree that moved"])
def test_the_patterns_give_the_pairs(name):
    make_old, make_new, _ = CASES[name]
    old = make_old().state_dict()
    for group in find_groups(old, make_new()):
        assert is_exact_pattern(old, group.old_pattern, group.new_pattern, group.pairs)


def test_a_layer_inserted_leaves_its_place_empty():
    old = Called(chain([0, 1, 2], [4, 8, 6, 2]))
    new = Called(chain([0, 2, 3], [4, 8, 6, 2], (1, nn.LayerNorm(8))))
    (group,) = find_groups(old.state_dict(), new)
    assert (group.old_pattern, group.new_pattern) == ("net.{1,2}.*", "net.{2,3}.*")
    assert group.is_unambiguous
    renamed = rename(old.state_dict(), [group])
    found = new.load_state_dict(renamed, strict=False)
    assert (found.missing_keys, found.unexpected_keys) == (["net.1.weight", "net.1.bias"], [])


def test_equal_layers_in_place_are_not_called_renumbered():
    """Layers 0, 2 and 4 of one shape: 0 and 2 load as they are, and only the order speaks."""
    old, new = Called(chain([0, 2, 4], [4] * 4)), Called(chain([0, 1, 2], [4] * 4))
    (group,) = find_groups(old.state_dict(), new)
    assert not group.is_unambiguous
    assert_right(old, new, [group])
    longer = Called(chain([0, 1, 2, 3], [4] * 5))
    assert find_groups(Called(chain([0, 1, 2], [4] * 4)).state_dict(), longer) == ()


def test_an_inserted_layer_of_a_shape_that_others_have_is_ambiguous():
    old = Called(chain([0, 1, 2], [4, 4, 4, 2]))
    (group,) = find_groups(old.state_dict(), Called(chain([0, 1, 2, 3], [4, 4, 4, 4, 2])))
    assert dict(group.pairs) == {"net.2.weight": "net.3.weight", "net.2.bias": "net.3.bias"}
    assert not group.is_unambiguous


class OldConv(nn.Module):
    """PyG's GCNConv before 2.0: x @ weight."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight, self.bias = (
            nn.Parameter(torch.randn(inputs, outputs)),
            nn.Parameter(torch.randn(outputs)),
        )

    def forward(self, x):
        return x @ self.weight + self.bias


class NewConv(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.lin, self.bias = (
            nn.Linear(inputs, outputs, bias=False),
            nn.Parameter(torch.randn(outputs)),
        )

    def forward(self, x):
        return self.lin(x) + self.bias


@pytest.mark.parametrize("path", ["convs", "body.convs"])
@pytest.mark.parametrize("sizes", [(4, 8, 3), (4, 8, 6, 5, 2), (4, 1, 3)])
def test_transposed_weights_of_every_convolution(path, sizes):
    def build(conv):
        inner: nn.Module = nn.Sequential(*(conv(a, b) for a, b in pairwise(sizes)))
        for name in reversed(path.split(".")):
            inner = Called({name: inner})
        return inner

    old, new = build(OldConv), build(NewConv)
    (group,) = find_groups(old.state_dict(), new)
    assert group.old_pattern == f"{path}.*.weight"
    assert group.new_pattern == f"{path}.*.lin.weight"
    assert group.is_unambiguous
    assert {*group.transposed_keys} == {*group.pairs}
    new.load_state_dict(rename(old.state_dict(), [group]), strict=True)
    x = torch.randn(5, 4)
    torch.testing.assert_close(old(x), new(x))


def test_a_square_weight_may_be_transposed_or_not():
    square = find_groups(
        Called({"conv": OldConv(4, 4)}).state_dict(), Called({"conv": NewConv(4, 4)})
    )
    assert [g.is_unambiguous for g in square] == [False]
    assert "square" in square[0].evidence
    old = Called({"convs": nn.Sequential(OldConv(4, 8), OldConv(8, 8), OldConv(8, 2))})
    new = Called({"convs": nn.Sequential(NewConv(4, 8), NewConv(8, 8), NewConv(8, 2))})
    sure, unsure = find_groups(old.state_dict(), new)
    assert (sure.is_unambiguous, unsure.is_unambiguous) == (True, False)
    assert [*unsure.pairs] == ["convs.1.weight"]
    new.load_state_dict(rename(old.state_dict(), [sure, unsure]), strict=True)
    torch.testing.assert_close(old(torch.eye(4)), new(torch.eye(4)))


def shapes(*keys, shape=(3, 4), **others):
    return {key: torch.empty(shape) for key in keys} | others


class Holder(nn.Module):
    """A module with these keys."""

    def __init__(self, entries):
        super().__init__()
        for key, t in entries.items():
            owner: nn.Module = self
            *names, last = key.split(".")
            for name in names:
                if not hasattr(owner, name):
                    owner.add_module(name, nn.Module())
                owner = owner.get_submodule(name)
            owner.register_parameter(last, nn.Parameter(t))


AMBIGUOUS = {
    "query and key": (shapes("attn.q_proj.weight", "attn.k_proj.weight"),
                      shapes("attn.query.weight", "attn.key.weight"), "fits as well"),
    "two heads": (shapes("a.weight", "b.weight"), shapes("x.weight", "y.weight"),
                  "`y.*` fits as well"),
    "one head of two": (shapes("a.weight", "b.weight"), shapes("x.weight"), "`b.*` fits as well"),
    "two homes": (shapes("enc.a.weight", "enc.b.weight", "head.weight"),
                  shapes("online.enc.a.weight", "online.enc.b.weight", "target.enc.a.weight",
                         "target.enc.b.weight", "head.weight"), "`target.enc.*` fits as well"),
    "teacher and student": (shapes("teacher.body.weight", "student.body.weight"),
                            shapes("one.body.weight", "two.body.weight"), "as well"),
    "gate and up of every expert": (
        {f"experts.{n}.{w}.weight": torch.empty(3, 4) for n in range(5) for w in ("w1", "w3")},
        {f"moe.experts.{n}.{w}.weight": torch.empty(3, 4) for n in range(5)
         for w in ("gate", "up")},
        "`moe.experts.*.up.*` fits as well"),
    "a hundred of one shape": (
        {f"{chr(97 + n // 26)}{chr(97 + n % 26)}x.weight": torch.empty(3) for n in range(100)},
        {f"{chr(97 + n // 26)}{chr(97 + n % 26)}y.weight": torch.empty(3) for n in range(100)},
        "99 others of these shapes fit as well"),
}  # fmt: skip


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_what_fits_twice_is_ambiguous_and_says_what_fits_as_well(name):
    old, new, clause = AMBIGUOUS[name]
    groups = find_groups(old, Holder(new))
    assert groups
    assert not any(group.is_unambiguous for group in groups)
    assert clause in groups[0].evidence
    assert len(groups) <= 8
    rename(old, groups)


NEAR_MISSES = {
    "another shape": (shapes("a.weight"), shapes("b.weight", shape=(4, 4))),
    "a weight is no bias": (shapes("fc.weight", shape=(3,)), shapes("fc.bias", shape=(3,))),
    "statistics are no bias": (shapes("n.running_mean", shape=(3,)), shapes("n.bias", shape=(3,))),
    "nothing missing": (shapes("a.weight", "b.weight"), shapes("a.weight")),
    "nothing unexpected": (shapes("a.weight"), shapes("a.weight", "b.weight")),
    "more layers": (shapes("l.0.weight"), shapes("l.0.weight", "l.1.weight")),
    "fewer layers": (shapes("l.0.weight", "l.1.weight"), shapes("l.0.weight")),
    "a new place and another name": (shapes("a.b.scale", "m.w"), shapes("c.d.shift", "m.w")),
}


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_what_is_no_rename(name):
    old, new = NEAR_MISSES[name]
    assert find_groups(old, Holder(new)) == ()


def test_names_of_experts_are_a_group_each():
    old = {
        f"layers.{n}.experts.{e}.{w}.weight": torch.empty(s)
        for n in range(2) for e in range(1024)
        for w, s in (("w1", (3, 2)), ("w2", (2, 3)))
    }  # fmt: skip
    names = {"experts": "mlp.experts", "w1": "gate_proj", "w2": "down_proj"}
    new = {re.sub("experts|w1|w2", lambda m: names[m[0]], key): t for key, t in old.items()}
    groups = find_groups(old, Holder(new))
    assert [(group.old_pattern, group.new_pattern, len(group.pairs)) for group in groups] == [
        ("layers.*.experts.*.w1.weight", "layers.*.mlp.experts.*.gate_proj.weight", 2048),
        ("layers.*.experts.*.w2.weight", "layers.*.mlp.experts.*.down_proj.weight", 2048),
    ]
    assert all(group.is_unambiguous for group in groups)
    assert rename(old, groups).keys() == new.keys()


def test_a_head_beside_a_subtree_that_has_one_more():
    """A subtree of which a part is new is still found; the part stays missing."""
    old = shapes("backbone.a.weight", "backbone.b.weight", "backbone.c.bias")
    new = shapes("encoder.a.weight", "encoder.b.weight", "encoder.c.bias", "encoder.d.weight")
    (group,) = find_groups(old, Holder(new))
    assert (group.old_pattern, len(group.pairs)) == ("backbone.*", 3)


words = st.sampled_from(["a", "b", "fc", "norm", "0", "1", "2"])
trees = st.dictionaries(
    st.lists(words, min_size=1, max_size=3).map(".".join),
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
    min_size=1,
    max_size=8,
)


@given(trees, trees)
@settings(max_examples=examples(150))
def test_a_subtree_under_another_name_is_found(subtree, others):
    kept = {f"kept.{key}.weight": tensor(f"kept.{key}.weight", s) for key, s in others.items()}
    old = {f"old.{key}.weight": tensor(f"old.{key}.weight", s) for key, s in subtree.items()}
    new = {f"new.{key}.weight": tensor(f"new.{key}.weight", s) for key, s in subtree.items()}
    groups = find_rename_groups(new, old, {**kept, **new}, {**kept, **old})
    pairs = {a: b for group in groups for a, b in group.pairs.items()}
    assert pairs == {key: f"new{key[3:]}" for key in old}


@given(trees, trees)
@settings(max_examples=examples(200))
def test_pairs_are_a_bijection_of_equal_shapes(one, other):
    actual = {f"{key}.weight": tensor(f"{key}.weight", s) for key, s in one.items()}
    expected = {f"{key}.weight": tensor(f"{key}.weight", s) for key, s in other.items()}
    missing = {key: t for key, t in expected.items() if key not in actual}
    unexpected = {key: t for key, t in actual.items() if key not in expected}
    groups = find_rename_groups(missing, unexpected, expected, actual)
    pairs = {a: b for group in groups for a, b in group.pairs.items()}
    assert sum(len(group.pairs) for group in groups) == len(pairs) == len({*pairs.values()})
    for group in groups:
        for old, new in group.pairs.items():
            shape = actual[old].shape
            assert expected[new].shape == (shape[::-1] if old in group.transposed_keys else shape)
            assert old in expected or old in unexpected
            assert new in actual or new in missing


class Averaged(nn.Module):
    """Parameters and buffers, registered in an order that is not that of their names."""

    def __init__(self, *, tied=False):
        super().__init__()
        self.stem = nn.Linear(3, 4)
        self.blocks = nn.Sequential(
            *(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)) for _ in range(11))
        )
        self.a_head = nn.Linear(4, 2)
        self.embedding = nn.Embedding(2, 4)
        if tied:
            self.embedding.weight = self.a_head.weight

    def forward(self, x):
        return self.a_head(self.blocks(self.stem(x))) + self.embedding.weight.sum()


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("wrap", [lambda e: {"ema": e, "step": 7}, lambda e: e])
def test_a_list_of_an_average_is_parameters_in_order(tmp_path, frozen, tied, wrap):
    torch.manual_seed(1)
    old, new = Averaged(tied=tied), Averaged(tied=tied)
    for one in (old, new):
        one.stem.requires_grad_(not frozen)
    shadow = [p.detach().clone() for p in old.parameters() if p.requires_grad]
    ema = {"decay": 0.999, "shadow_params": shadow, "collected_params": None}
    torch.save(wrap(ema), tmp_path / "ema.pth")
    report = ckptool.diff(tmp_path / "ema.pth", module=new)
    (group,) = report.renames
    assert (group.old, group.unambiguous) == ("shadow_params.*", True)
    trained = [p for p in new.parameters() if p.requires_grad]
    assert len(group.keys) == len(trained)
    for old_key, new_key in group.keys.items():
        # A tied parameter has two names; parameters() has it once.
        assert new.get_parameter(new_key) is trained[int(old_key)]
    assert [f.code for f in report.findings if f.code in {"CK201", "CK204"}] == (
        ["CK201"] * 2 if frozen else []
    )


def test_a_list_of_other_shapes_is_no_average(tmp_path):
    shadow = [p.detach() for p in Averaged().parameters()][::-1]
    torch.save({"shadow_params": shadow}, tmp_path / "ema.pth")
    report = ckptool.diff(tmp_path / "ema.pth", module=Averaged())
    assert not any(group.old == "shadow_params.*" for group in report.renames)


def test_one_finding_explains_all_keys_of_a_group(tmp_path):
    old, new = Net("backbone", count=12), Net("encoder", count=12)
    torch.save(old.state_dict(), tmp_path / "a.pth")
    report = ckptool.diff(tmp_path / "a.pth", module=new)
    findings = [f for f in report.findings if f.code != "CK210"]
    assert [(f.code, f.key) for f in findings] == [("CK211", "encoder.*")]
    assert findings[0].message == (
        "`backbone.*` in the file is probably `encoder.*` in the module: 120 tensors of the same"
        " shapes, the only such subtree"
    )
    assert {v.code for v in report.verdicts} == {"CK211"}
    assert len(report.verdicts) == 240
    text = ckptool.text(report)
    assert "Keys that do not match: 240, as CK211 explains" in text
    assert len(text.splitlines()) < 20
    explained = ckptool.diff(tmp_path / "a.pth", module=new, explain="encoder.3.norm.bias")
    facts = {fact.name: fact.value for fact in explained.explanation}
    assert facts["probably renamed"] == (
        "backbone.3.norm.bias in the file is encoder.3.norm.bias in the module"
    )
    assert facts["as part of"] == "backbone.* -> encoder.*"


def test_the_new_layer_of_a_list_is_missing_and_the_others_are_not(tmp_path):
    old = Called(chain([0, 1, 2], [4, 8, 6, 2]))
    new = Called(chain([0, 2, 3], [4, 8, 6, 2], (1, nn.LayerNorm(8))))
    torch.save(old.state_dict(), tmp_path / "a.pth")
    report = ckptool.diff(tmp_path / "a.pth", module=new)
    found = {(f.code, f.key) for f in report.findings if f.code != "CK210"}
    assert found == {
        ("CK201", "net.1.weight"), ("CK201", "net.1.bias"), ("CK211", "net.{2,3}.*"),
    }  # fmt: skip
    by_key = {v.key: v.code for v in report.verdicts}
    assert by_key["net.1.weight"] == "CK201"
    assert by_key["net.2.weight"] == by_key["net.3.bias"] == "CK211"


def test_the_layer_that_was_removed_is_unexpected(tmp_path):
    old, new = Called(chain([0, 1, 2], [4, 8, 6, 2])), Called(chain([0, 1], [8, 6, 2]))
    torch.save(old.state_dict(), tmp_path / "a.pth")
    report = ckptool.diff(tmp_path / "a.pth", module=new)
    assert [f"{group.old} -> {group.new}" for group in report.renames] == [
        "net.{1,2}.* -> net.{0,1}.*"
    ]
    found = {(f.code, f.key) for f in report.findings if f.code != "CK210"}
    assert found == {
        ("CK204", "net.0.weight"), ("CK204", "net.0.bias"), ("CK211", "net.{0,1}.*"),
    }  # fmt: skip


wildcard_segments = st.sampled_from(["*", "1", "2", "a*", "a1", "{1,2}", "b"])
wildcard_keys = st.sets(
    st.lists(wildcard_segments, min_size=1, max_size=4).map(".".join), max_size=12
)


@given(wildcard_keys, wildcard_keys)
@settings(max_examples=examples(300))
def test_keys_with_a_literal_wildcard_are_left_out(old_keys, new_keys):
    """A mutant of a safetensors header had a key `*.`, which ended `diff` in a traceback."""
    old, new = ({key: tensor(key) for key in keys} for keys in (old_keys, new_keys))
    missing = {key: t for key, t in new.items() if key not in old}
    unexpected = {key: t for key, t in old.items() if key not in new}
    groups = find_rename_groups(missing, unexpected, new, old)
    for group in groups:
        for pair in group.pairs.items():
            assert not any("*" in key or "{" in key for key in pair)
