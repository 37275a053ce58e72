"""The HTML report without a browser: well-formed, closed to the network, escaped, bounded."""

import os
import pty
import re
import subprocess
import sys
from html import unescape
from xml.etree import ElementTree as ET

import html5lib
import pytest
import torch
from msgspec.structs import replace
from paths import ROOT
from render.pages import (
    ARGUMENTS,
    KINDS,
    ODD,
    SAMPLES,
    WITH,
    WITHOUT,
    html,
    large,
    odd,
    page,
    reference,
    report,
)
from torch import nn

from ckptool import api
from ckptool.phrases import make_printable
from ckptool.render import FORMATS, RenderOptions, render
from ckptool.render.html.squarify import Box, squarify
from samples.attention import CausalAttentionWithBuffer

BOUND = 300_000
SPACE = "{http://www.w3.org/1999/xhtml}"


def parsed(text: str) -> ET.Element:
    """Parse as a browser does; what a browser would have to repair is an error."""
    return html5lib.HTMLParser(strict=True).parse(text)


def texts(tree: ET.Element, tag: str) -> list[str]:
    return ["".join(one.itertext()).strip() for one in tree.iter(f"{SPACE}{tag}")]


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    return {kind: page(kind, folder) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_is_well_formed_and_asks_nobody(pages, kind):
    text = pages[kind]
    tree = parsed(text)
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:" in text
    assert not list(tree.iter(f"{SPACE}script"))
    linked = re.findall(r'(?:href|src|action|data)="([^"]*)"', text) + re.findall(
        r"url\(([^)]*)\)", text
    )
    assert all(link.startswith("#") or link == "data:," for link in linked)
    assert "@import" not in text
    assert not re.search(r"<[^>]*\son[a-z]+=", re.sub(r'"[^"]*"', '""', text))
    assert len(text.encode()) < BOUND


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_unique_and_every_picture_has_a_name_and_a_table(pages, kind):
    tree = parsed(pages[kind])
    ids = [one.get("id") for one in tree.iter() if one.get("id")]
    assert len(ids) == len(set(ids))
    drawn = [one for one in tree.iter() if one.get("role") == "img"]
    for picture in drawn:
        names = (picture.get("aria-labelledby") or "").split()
        assert len(names) == 2
        assert set(names) <= set(ids)
    summaries = [one for one in texts(tree, "summary") if one == "The same as a table"]
    assert len(summaries) <= len(drawn)
    assert bool(summaries) == bool(drawn)


@pytest.mark.parametrize("kind", ["diff", "files", "odd"])
def test_the_same_report_gives_the_same_bytes(pages, kind, tmp_path):
    torch.manual_seed(7)
    first = report(kind, tmp_path)
    assert html(first) == html(first)
    if kind == "diff":
        assert page(kind, tmp_path) == pages[kind]


def test_the_reference_case_shows_both_masks(pages):
    tree = parsed(pages["diff"])
    assert texts(tree, "h1") == ["loads, but mask is not in the state_dict and will not be saved"]
    tables = [t for t in tree.iter(f"{SPACE}table") if t.get("class") == "cells"]
    values = [[texts(row, "td") for row in t.iter(f"{SPACE}tr")][1:] for t in tables]
    for number, shown in zip("21", values, strict=True):
        triangle = [[number if x > y else "0" for x in range(6)] for y in range(6)]
        assert shown == triangle
    assert [texts(t, "caption") for t in tables] == [["In the file"], ["As the module computes it"]]
    assert "not in the state_dict" in texts(tree, "td")


def test_the_changed_mask_has_another_shade(pages):
    shades = re.findall(r'<path class="(v\d)" d="M1 0', pages["diff"])
    assert shades == ["v6", "v3"]


def test_a_card_is_a_cause_with_its_consequences_and_one_fix(pages):
    tree = parsed(pages["diff"])
    heads = [head for head in texts(tree, "h3") if "CK" in head]
    assert len(heads) == len(set(heads))
    assert heads == ["error unregistered tensor CK101", "warning pickled module CK302"]
    items = texts(tree, "li")
    assert any(text.startswith("CK110 (error): mask is still on the CPU") for text in items)
    fixes = " ".join(texts(tree, "p"))
    assert 'Fix In samples/attention.py:58: self.register_buffer("mask", ..., persistent' in fixes


def test_missing_state_stands_beside_the_modules(pages):
    tree = parsed(pages["missing"])
    rows = [texts(row, "th") + texts(row, "td") for row in tree.iter(f"{SPACE}tr")]
    assert ["mask", "\N{EM DASH}", "float32 [6, 6]", "missing"] in rows
    assert ["W_key.weight", "float32 [2, 3]", "float32 [2, 3]", "match"] in rows


def test_a_layer_that_is_missing_whole_is_one_row(tmp_path):
    state = nn.Transformer(8, 2, 2, 4, 16, batch_first=True).state_dict()
    kept = {key: value for key, value in state.items() if "decoder.layers.3." not in key}
    torch.save({**kept, "head.weight": torch.ones(2, 2)}, tmp_path / "cut.pth")
    arguments = {"d_model": 8, "nhead": 2, "num_encoder_layers": 2, "num_decoder_layers": 4,
                 "dim_feedforward": 16, "batch_first": True}  # fmt: skip
    said = api.diff(tmp_path / "cut.pth", module="torch.nn:Transformer", kwargs=arguments,
                    pictures=True)  # fmt: skip
    tree = parsed(html(said))
    rows = [texts(row, "th") + texts(row, "td") for row in tree.iter(f"{SPACE}tr")]
    lost = len(state) - len(kept)
    assert ["decoder.layers.3", "\N{EM DASH}", f"{lost} tensors", "missing"] in rows
    assert ["head.weight", "float32 [2, 2]", "\N{EM DASH}", "unexpected"] in rows
    assert ["encoder", "26 tensors", "26 tensors", "match"] in rows


def test_two_files_are_coloured_by_relative_change(pages):
    text = pages["files"]
    toned = {
        key: tone
        for tone, key in re.findall(r'<path class="(r\w)" d="[^"]*"><title>([^:]*):', text)
    }
    blocks = {f"block.{i}.weight": f"r{i + 1}" for i in range(5)}
    assert toned == {
        **blocks, "block.5.weight": "r0", "mask": "rx", "turned": "rs", "come": "ra", "gone": "rd"
    }  # fmt: skip
    assert text.count("60 of 64 elements changed") == 2 * 5


def test_what_is_not_finite_has_shades_of_its_own(pages):
    (legend,) = re.findall(r'<h3><code>mask</code>.*?<ul class="legend">(.*?)</ul>', pages["files"],
                           re.DOTALL)  # fmt: skip
    labels = [one.strip() for one in re.sub(r"<[^>]*>", "", legend).split("\n") if one.strip()]
    assert labels == ["0", "1", "2", "-inf", "inf", "NaN"]
    assert re.findall(r'<rect class="(\w+)"', legend)[3:] == ["n0", "n1", "n2"]


def test_keys_are_text_whatever_they_are(pages):
    tree = parsed(pages["odd"])
    assert all(c.isprintable() or c == "\n" for c in pages["odd"])
    names = texts(tree, "th")
    for key in ODD:
        if len(key) < 48:
            assert (make_printable(key).strip() or '""') in names
    assert not [one for one in tree.iter() if one.tag in {f"{SPACE}script", f"{SPACE}img"}]
    assert not [one for one in tree.iter() if any(name.startswith("on") for name in one.attrib)]


def test_a_wide_key_is_cut_and_whole_in_its_title(pages):
    tree = parsed(pages["odd"])
    wide = next(key for key in ODD if len(key) > 100)
    titles = [one.get("title") for one in tree.iter() if one.get("title")]
    assert wide in titles
    assert any("..." in name and len(name) <= 64 for name in texts(tree, "th"))


def test_a_surrogate_in_a_key_is_escaped():
    (checkpoint,) = api.inspect("samples/model.pth", pictures=True).checkpoints
    (state,) = checkpoint.states
    bad = replace(state, tensors=(replace(state.tensors[0], key="bad\udc80"), *state.tensors[1:]))
    said = api.inspect("samples/model.pth", pictures=True)
    text = html(replace(said, checkpoints=(replace(checkpoint, states=(bad,)),)))
    assert r"bad\udc80" in text
    text.encode()


def test_more_tensors_make_no_larger_page(tmp_path):
    small, great = (api.inspect(large(tmp_path, n), pictures=True) for n in (72, 720))
    assert len(great.checkpoints[0].states[0].tensors) == 10_080
    assert len(html(great).encode()) < 1.5 * len(html(small).encode()) < BOUND
    assert "drawn as" in html(great)


def test_a_deep_and_a_crowded_tree_are_drawn(tmp_path):
    tensors = {"a" + ".a" * depth: torch.ones(1) for depth in range(0, 3000, 3)}
    tensors |= {f"flat{i}": torch.ones(1) for i in range(3000)}
    torch.save(tensors, tmp_path / "deep.pth")
    text = html(api.inspect(tmp_path / "deep.pth", pictures=True))
    parsed(text)
    assert "more" in text
    assert len(text) < 2 * BOUND


def test_quiet_is_the_verdict_only(pages):
    short = render("html", reference(), RenderOptions(verbosity=-1))
    assert "is not in the state_dict and will not be saved" in short
    assert "<section" not in short
    assert len(short) < len(pages["diff"])


@pytest.mark.parametrize(
    "sizes", [[], [1], [5, 1], [10**12, 1], [7] * 100, [2**-i for i in range(900)]]
)
def test_squarify_covers_the_box(sizes):
    box = Box(0, 0, 300, 200)
    placed = squarify(sizes, box)
    assert len(placed) == len(sizes)
    for size, one in zip(sizes, placed, strict=True):
        assert one.area == pytest.approx(box.area * size / sum(sizes), rel=1e-6, abs=1e-6)
        assert one.x >= -1e-6
        assert one.y >= -1e-6
        assert one.x + one.width <= 300 + 1e-6
        assert one.y + one.height <= 200 + 1e-6


def test_equal_sizes_are_nearly_square():
    placed = squarify([1] * 100, Box(0, 0, 300, 200))
    assert all(0.4 < one.width / one.height < 2.5 for one in placed)


INJECTED = (
    ("constructor", ("-o", "new.pth")),
    ("constructor", ("-o", "new.safetensors")),
    ("constructor", ("--dry-run",)),
    ("file:donor.pth#mask", ("-o", "new.pth")),
    ("zeros", ("-o", "new.pth")),
)


@pytest.mark.parametrize(("source", "output"), INJECTED)
def test_an_injected_value_is_drawn_as_it_was_written(source, output, run_command, tmp_path):
    """The values are computed, in no file of the source, and read while the report is made."""
    mask = torch.triu(torch.full((6, 6), 3.0), 1)
    torch.save({"mask": mask}, tmp_path / "donor.pth")
    words = [w for name, value in ARGUMENTS.items() for w in ("-k", f"{name}={value}")]
    words += ["-m", WITH, "--inject", f"mask={source}", *output]
    words += ["--format", "html", "-o", "page.html"]
    ran = run_command(
        "migrate", str(SAMPLES / "model.pth"), *words, cwd=tmp_path, PYTHONPATH=str(ROOT)
    )
    assert ran.code == 0, ran.err
    built = CausalAttentionWithBuffer(**ARGUMENTS).mask
    expected = {"constructor": built, "zeros": torch.zeros(6, 6)}.get(source, mask)
    tree = parsed((tmp_path / "page.html").read_text(encoding="utf-8"))
    (cells, *_) = (t for t in tree.iter(f"{SPACE}table") if t.get("class") == "cells")
    rows = [texts(row, "td") for row in cells.iter(f"{SPACE}tr")][1:]
    drawn = [[float(cell) for cell in row] for row in rows]
    assert drawn == expected.tolist()
    assert any("mask" in text for text in texts(tree, "h3") + texts(tree, "h2"))
    if output == ("-o", "new.pth"):
        assert torch.equal(torch.load(tmp_path / "new.pth")["mask"], expected)


def test_html_is_a_format_of_the_command(run_command, tmp_path):
    target = tmp_path / "report.html"
    kwargs = [f"-k{key}={value}" for key, value in ARGUMENTS.items()]
    words = ("diff", "samples/whole.pth", "-m", WITHOUT, *kwargs)
    ran = run_command(*words, "--format", "html", "-o", target)
    assert (ran.code, ran.out, ran.err) == (1, "", "")
    same = html(reference()).replace(str(SAMPLES), "samples")
    page = target.read_text(encoding="utf-8")
    assert {*same.splitlines()} <= {*page.splitlines()}
    assert "to register them in the source: ckptool fix" in page  # what the library cannot know
    assert "html" in FORMATS


def test_a_pipe_gets_the_page(ckptool):
    ran = ckptool("inspect", "samples/buffer.pth", "--format", "html")
    assert ran.code == 0
    parsed(ran.out)
    assert "In the file" in unescape(ran.out)


@pytest.mark.process
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("inspect", "samples/buffer.pth"), "-o report.html"),
        (("migrate", "samples/buffer.pth", "-o", "never.safetensors"), "> report.html"),
    ],
)
def test_a_terminal_is_refused_before_anything_is_done(words, said, samples):
    main, side = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-m", "ckptool", *words, "--format", "html"],
        stdout=side,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        cwd=samples.parent,
    )
    os.close(side)
    os.close(main)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert said in done.stderr
    assert not (samples.parent / "never.safetensors").exists()


def test_json_has_a_drawing_only_where_one_was_asked_for():
    assert "drawing" not in render("json", api.inspect("samples/buffer.pth"), RenderOptions())
    assert '"drawing"' in render(
        "json", api.inspect("samples/buffer.pth", pictures=True), RenderOptions()
    )


def test_odd_keys_come_back_from_the_other_formats_too(tmp_path):
    for format_ in ("table", "markdown"):
        assert "\x07" not in render(format_, odd(tmp_path), RenderOptions())


def test_what_loading_fills_in_is_no_match_of_a_tensor_of_the_file(tmp_path, run_command):
    module = nn.BatchNorm1d(2)
    state_dict = {k: v for k, v in module.state_dict().items() if k != "num_batches_tracked"}
    torch.save(state_dict, tmp_path / "old.pth")
    module.load_state_dict(torch.load(tmp_path / "old.pth"))  # torch reports nothing missing
    words = ("-m", "torch.nn:BatchNorm1d", "-k", "num_features=2", "-o", "page.html")
    assert run_command("diff", "old.pth", *words, cwd=tmp_path).code == 0
    rows = re.findall(r"<tr.*?</tr>", (tmp_path / "page.html").read_text(), re.DOTALL)
    assert [row for row in rows if "num_batches_tracked" in row and "filled in by loading" in row]
