"""No word of a fixed vocabulary is cut in a narrow terminal; test_cases.py looks at all rules."""

import os
from pathlib import Path

import pytest
from command_runs import WITH_BUFFER
from paths import ROOT
from render.widths import WIDTHS, assert_no_word_is_cut

from ckptool import api
from ckptool.commands.lock import lock_all
from ckptool.config import ModelEntry, ProjectConfig, Settings
from ckptool.render import RenderOptions
from ckptool.render.blocks import SHAPE, SIZE, Column, ColumnKind, TableBlock
from ckptool.render.column_widths import fit_columns
from ckptool.render.table import _render_table, wrap_text

MODULE = WITH_BUFFER[1]
KWARGS = {"d_in": 3, "d_out": 2, "context_length": 6}
SAMPLE = {"module": MODULE, "kwargs": KWARGS}
INPUTS = "samples.attention:example_inputs"
CONFIG = ProjectConfig(
    Settings(
        models=(
            ModelEntry(path="samples/model.pth", module=MODULE, kwargs=KWARGS),
            ModelEntry(
                path="samples/buffer.pth",
                module="samples.attention:CausalAttentionWithoutBuffers",
                kwargs=KWARGS,
                against="without.lock.json",
            ),
        )
    ),
    ROOT,
)
REPORTS = {
    "inspect": lambda tmp: api.inspect("samples/whole.pth"),
    "diff": lambda tmp: api.diff("samples/model.pth", **SAMPLE),
    "diff of files": lambda tmp: api.diff("samples/model.pth", "samples/buffer.pth"),
    "digest": lambda tmp: api.digest("samples/model.pth"),
    "audit": lambda tmp: api.audit(
        "samples.attention:CausalAttentionWithoutBuffers", kwargs=KWARGS
    ),
    "audit of a project": lambda tmp: api.audit(config=CONFIG),
    "verify": lambda tmp: api.verify("samples/buffer.pth", inputs=INPUTS, **SAMPLE),
    "gate": lambda tmp: api.gate(["samples/model.pth"], **SAMPLE),
    "migrate": lambda tmp: api.migrate(
        "samples/model.pth", tmp / "new.safetensors", dry_run=True, **SAMPLE
    ),
    "convert": lambda tmp: api.convert("samples/whole.pth", tmp / "new.pt"),
    "lock": lambda tmp: api.lock("samples/model.pth", output=tmp / "x.lock.json"),
    "locks": lambda tmp: lock_all(
        config=ProjectConfig(CONFIG.settings, Path(os.path.relpath(tmp, ROOT)))
    ),
}


@pytest.mark.parametrize("name", REPORTS)
def test_no_word_of_a_report_is_cut(name: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    assert_no_word_is_cut(REPORTS[name](tmp_path))


COMMANDS = (
    "ckptool convert old.pth -o old-converted.pth",
    "ckptool migrate 'my runs/a.pth' -o a-migrated.pth -m models.net:Net -k 'cfg={\"d\": 3}'",
    "ckptool run -- python train.py --epochs 3",
)


@pytest.mark.parametrize("width", [40, 60, 80])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_stays_on_one_line(command: str, width: int) -> None:
    before = "Take it from a checkpoint that has it, or write one with the constructor's value: "
    for text in (before + command, f"{before}{command}; or in code: model.fc = nn.Linear(2, 3)"):
        lines = wrap_text(text, 0, RenderOptions(width=width))
        assert len(lines) > 1
        (line,) = (line for line in lines if "ckptool" in line)
        assert command in line
        assert all(len(line) <= width for line in lines if "ckptool" not in line)
        assert " ".join(" ".join(lines).split()) == text


@pytest.mark.parametrize("width", WIDTHS)
def test_words_are_wrapped_and_names_are_cut(width: int) -> None:
    key = "encoder.layers.11.self_attention.output_projection.weight_of_the_layer"
    row = [key, "not in the state_dict", "[51865, 1280]", "float8_e4m3fn", "12.5 MiB"]
    columns = [
        Column("key"),
        Column("kind", ColumnKind.WORDS),
        Column("shape", ColumnKind.WORDS),
        Column("dtype", ColumnKind.WORDS),
        Column("size", ColumnKind.NUMBER),
    ]
    (fitted,) = fit_columns([row], columns, width)
    assert [cell.split() for cell in fitted[1:]] == [cell.split() for cell in row[1:]]
    assert "..." in fitted[0]
    widths = [max(map(len, cell.splitlines())) for cell in fitted]
    assert sum(widths) + 2 * 4 <= width or widths[1:4] == [10, 7, 13]


def test_one_long_key_does_not_pad_the_other_rows_of_a_pipe():
    long_key = ".".join(["encoder"] * 30)
    rows = [(f"layer{i}.weight", "[4, 4]", "64 B") for i in range(40)] + [(long_key, "[4]", "16 B")]
    table = TableBlock("Keys", (Column("key"), SHAPE, SIZE), tuple(rows))
    _title, header, rule, *lines = _render_table(table, RenderOptions()).splitlines()
    assert max(map(len, [header, rule, *lines[:-1]])) < 40
    assert lines[-1].split() == [long_key, "[4]", "16", "B"]
    assert lines[0].split() == ["layer0.weight", "[4,", "4]", "64", "B"]


def test_rows_of_a_pipe_are_aligned_where_most_keys_are_long():
    keys = [f"{'encoder.' * 20}{i:02}" for i in range(20)]
    table = TableBlock("Keys", (Column("key"), SIZE), tuple((key, "16 B") for key in keys))
    lines = _render_table(table, RenderOptions()).splitlines()[3:]
    assert len({line.index("16 B") for line in lines}) == 1
