"""Files whose parts share keys and objects: the work grows with the file, not with its square."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from files import corruption_reason, describe, save
from proportion import assert_in_proportion
from torch import nn

import ckptool
from ckptool.errors import CkptoolError
from ckptool.formats import extra_state, open_checkpoint
from ckptool.formats.pickle import modules
from ckptool.formats.pickle.places import MAX_PLACE_CHARS, PlaceJoiner
from ckptool.model import Checkpoint
from ckptool.phrases import MAX_LINE_CHARS
from ckptool.render import FORMATS, RenderOptions, render

ONE = torch.ones(1)


def make_states(n: int) -> object:
    return {f"s{i}": {"w": ONE} for i in range(n)}


def make_names_below_a_long_key(n: int) -> object:
    return {"k" * 1000 * n: {f"n{i}": {"w": ONE, "lr": 0.1} for i in range(n)}}


def make_references_to_one_list(n: int) -> object:
    numbers = [*range(n), ONE]
    return {"w": ONE, **{f"d{i}": numbers for i in range(n)}}


def make_references_to_one_plain_list(n: int) -> object:
    numbers = list(range(n))
    return {"w": ONE, **{f"d{i}": numbers for i in range(n)}}


def make_references_to_one_object(n: int) -> object:
    path = Path("/".join(["p"] * n))
    return {"w": ONE, **{f"d{i}": path for i in range(n)}}


def make_equal_keys(n: int) -> object:
    return {"w": ONE, "t": {**{(i, i): ONE for i in range(n)}, "w": ONE}}


def make_optimizer(n: int) -> object:
    state = {i or f"p{i}" + "k" * 300 * n: {"exp_avg": ONE} for i in range(n)}
    return {"state": state, "param_groups": [{"lr": 0.1, "params": list(range(n))}]}


def make_groups_of_one_list_of_parameters(n: int) -> object:
    parameters = [nn.Parameter(ONE) for _ in range(n)]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    optimizer.param_groups = [{"params": parameters} for _ in range(n)]
    return {"w": ONE, "optimizer": optimizer}


def make_modules_of_one_dict_of_hooks(n: int) -> object:
    hooks = dict.fromkeys(range(n))
    children = [nn.Module() for _ in range(n)]
    for child in children:
        child.__dict__["_forward_hooks"] = hooks
    return nn.ModuleList([nn.Linear(1, 1), *children])


def make_names_that_several_states_make(n: int) -> object:
    keys = [".".join(["a"] * (i + 1)) for i in range(20)]
    return {
        key: {f"{'.'.join(['a'] * (20 - i))}{m}": ONE for m in range(n)}
        for i, key in enumerate(keys)
    }


def make_nested_optimizer(n: int) -> object:
    node: Any = ONE
    for i in range(n):
        node = {"k" * 400 + str(i): node}
    return {"state": node, "param_groups": []}


def make_shared_values(n: int) -> object:
    text = "x" * 100 * n
    return {"w": ONE, "config": {f"c{i}": [text, ONE] for i in range(n)}}


def make_long_attribute(n: int) -> object:
    module = nn.Linear(1, 1)
    module.table = {"k" * 1000 * n: {f"n{i}": i for i in range(n)}}
    return module


def make_buffers(n: int) -> object:
    module = nn.Module()
    for i in range(n):
        module.register_buffer(f"b{i}", torch.ones(1), persistent=False)
    return module


MAKERS = [value for name, value in sorted(globals().items()) if name.startswith("make_")]


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_work_grows_with_the_file(make: Callable[[int], object], tmp_path: Path) -> None:
    for n in (100, 200):
        save(tmp_path / f"{n}.pth", make(n))

    def inspect_and_show(n: int) -> None:
        report = ckptool.inspect(tmp_path / f"{n}.pth")
        for form in ("table", "json"):
            render(form, report, RenderOptions(verbosity=1))

    assert_in_proportion(inspect_and_show, 100)


@pytest.mark.parametrize(
    "make",
    [
        make_groups_of_one_list_of_parameters,
        make_modules_of_one_dict_of_hooks,
        make_names_that_several_states_make,
    ],
)
def test_a_comparison_grows_with_the_files(make: Callable[[int], object], tmp_path: Path) -> None:
    for n in (100, 200):
        save(tmp_path / f"{n}.pth", make(n))
    assert_in_proportion(lambda n: ckptool.diff(*[tmp_path / f"{n}.pth"] * 2), 100)


@pytest.mark.parametrize("form", FORMATS)
def test_one_long_key_makes_no_other_line_long(form: str, tmp_path: Path) -> None:
    nan = torch.full((1,), float("nan"))

    def measure_output(key: str) -> int:
        path = save(tmp_path / "one.pth", {**{f"x{i}": ONE for i in range(50)}, key: nan})
        gate = ckptool.gate([path])
        assert [f.key for f in gate.findings if f.code == "CK401"] == [key]
        reports = (gate, ckptool.inspect(path))
        return sum(len(render(form, report, RenderOptions(verbosity=1))) for report in reports)

    key = "k" * 100_000
    # JSON and the formats of CI services say it in full, each a few times.
    assert measure_output(key) - measure_output("k") <= 10 * len(key)
    assert ("json" in form or form in {"sarif", "junit", "gitlab", "github", "html"}) or (
        measure_output(key) < 50_000
    )


def test_a_key_that_the_memo_repeats_is_refused(tmp_path: Path) -> None:
    key = "k" * 30_000
    node: Any = ONE
    for _ in range(200):
        node = {key: node}
    reason = corruption_reason(describe, save(tmp_path / "nested.pth", node))
    assert "repeats keys of more than 256 characters too often" in reason
    several = save(tmp_path / "several.pth", {str(i): {key: ONE} for i in range(30)})
    assert len(describe(several).states) == 30


def test_tuples_of_one_hash_are_refused_and_others_are_not(tmp_path: Path) -> None:
    tuples = list(itertools.islice(itertools.product((-1, -2), repeat=16), 5000))
    assert len({hash(key) for key in tuples}) == 1
    reason = corruption_reason(describe, save(tmp_path / "a.pth", {"t": dict.fromkeys(tuples, 1)}))
    assert "keys of a dict have the same hash" in reason
    pairs = {(i, str(i)): 1 for i in range(5000)}
    assert describe(save(tmp_path / "b.pth", {"w": ONE, "t": pairs})).states


def test_a_module_under_many_names_is_refused_beyond_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = nn.Sequential(*(nn.Linear(1, 1) for _ in range(20)))
    path = save(tmp_path / "shared.pth", nn.ModuleList([shared] * 50))
    assert len(describe(path).states[0].tensors) == 50 * 40
    monkeypatch.setattr(modules, "_MAX_REPEATED_ATTRIBUTES", 10_000)
    assert "several names" in corruption_reason(describe, path)


def test_cut_places_are_said_and_stay_distinct(tmp_path: Path) -> None:
    content = {"k" * 5000: {f"n{i}": {"w": ONE} for i in range(20)}}
    checkpoint = describe(save(tmp_path / "long.pth", content))
    places = [state.at for state in checkpoint.states]
    assert len(set(places)) == 20
    assert all(len(place) <= MAX_PLACE_CHARS for place in places)
    assert any("cut" in skipped.reason for skipped in checkpoint.skipped)
    chosen = ckptool.diff(tmp_path / "long.pth", tmp_path / "long.pth", at=places[3])
    assert chosen.verdict == "same state"


def test_a_place_is_cut_only_beyond_the_limit() -> None:
    joiner = PlaceJoiner()
    assert joiner.join("a" * 200, "b" * 299) == f"{'a' * 200}.{'b' * 299}"
    assert joiner.cut_count == 0
    cut = joiner.join("a" * 200, "b" * 300)
    assert (cut[:199], cut[-200:]) == ("a" * 199, "b" * 200)
    assert "[cut 1]" in cut


def test_keys_of_one_text_are_told_apart(tmp_path: Path) -> None:
    long_keys = [tuple(range(n, n + 9)) for n in range(3)]
    content = dict.fromkeys((1, "1", (1, 2), ("a", (3,)), *long_keys), ONE)
    checkpoint = describe(save(tmp_path / "keys.pth", content))
    assert list(checkpoint.states[0].tensors) == [
        "1", "1'", "(1, 2)", "('a', (3,))", "tuple of 9", "tuple of 9'", "tuple of 9'2",
    ]  # fmt: skip


def test_the_largest_inner_state_is_found_at_any_depth(tmp_path: Path) -> None:
    inner = {f"w{i}": ONE for i in range(3)}
    content = {"best": ONE, "runs": {"mean": ONE, "last": [{"state_dict": inner}]}}
    roles = {state.at: state.role for state in _describe(tmp_path, content).states}
    assert roles == {"": "tensors", "runs": "tensors", "runs.last.0.state_dict": "state_dict"}


def _describe(folder: Path, content: object) -> Checkpoint:
    return describe(save(folder / "file.pth", content))


LONG_KEY = "k" * 100_000


class LongKeys(nn.Module):
    """Saved and unsaved tensors, each under a key of its own of 100,000 characters."""

    def __init__(self, size: int = 1) -> None:
        super().__init__()
        self.register_parameter(LONG_KEY, nn.Parameter(torch.ones(size)))
        self.register_buffer(f"n{LONG_KEY}", torch.randn(2), persistent=False)
        setattr(self, f"a{LONG_KEY}", torch.ones(2))


def test_long_keys_are_cut_in_every_report_for_people(tmp_path: Path) -> None:
    good, other = tmp_path / "good.pth", tmp_path / "other.pth"
    save(good, {LONG_KEY: ONE})
    save(other, {f"j{LONG_KEY}": ONE, f"v{LONG_KEY}": 3})
    reports = [
        report
        for path in (good, other)
        for module in (LongKeys(), LongKeys(3))
        for report in (
            ckptool.verify(path, module=module),
            ckptool.diff(path, module=module),
            ckptool.gate([path], module=module, values=False),
        )
    ]
    reports += [ckptool.diff(good, other), ckptool.audit(LongKeys()), ckptool.digest(good)]
    for form, report in itertools.product(("table", "markdown"), reports):
        text = render(form, report, RenderOptions(verbosity=1))
        assert max(map(len, text.splitlines())) < 15_000, (form, report.command)


def test_an_error_that_lists_places_names_a_few(tmp_path: Path) -> None:
    many = save(tmp_path / "many.pth", {f"s{i}": {"w": ONE, "v": ONE} for i in range(500)})
    with pytest.raises(CkptoolError, match="and 480 more: name one with --at") as refusal:
        ckptool.migrate(many, tmp_path / "new.pth")
    assert all(len(line) < 1000 for line in refusal.value.lines)


def test_one_line_of_an_error_is_never_long() -> None:
    assert [len(line) for line in CkptoolError("x" * 10**6).lines] == [MAX_LINE_CHARS]


def test_many_views_of_one_storage_of_bytes_are_searched_in_bounded_work(tmp_path, monkeypatch):
    """Each view that could begin a pickle would be gathered whole: bytes are counted together."""
    held = torch.frombuffer(bytearray(b"X\x00\x90\x00\x00" * 8000), dtype=torch.uint8)
    views = {f"v{i}": held.as_strided((190, 100), (100 + i % 7, 2), 5 * i) for i in range(1000)}
    torch.save(views, tmp_path / "v.pth")
    counts: list[int] = []
    list_positions = extra_state._list_positions
    monkeypatch.setattr(
        extra_state,
        "_list_positions",
        lambda view, count: counts.append(count) or list_positions(view, count),
    )
    checkpoint = open_checkpoint(tmp_path / "v.pth")
    assert len(counts) >= 1000
    assert sum(counts) < 6 << 20
    assert checkpoint.unread, "what was not gathered is said"
