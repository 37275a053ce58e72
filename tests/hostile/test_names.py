"""Names of installed packages that act: a gate fails each, whatever a list of bad names says."""

import argparse
import datetime as dt
from pathlib import Path

import pytest
import torch
from hostile.pickles import MARKER, archive, call, mapping, name, pickled, tensor, text

from ckptool.formats import open_checkpoint
from ckptool.formats.pickle import name_origin
from ckptool.formats.pickle.safe_globals import SAFE_GLOBALS, classify_name
from ckptool.model import Safety

ACTING = [
    ("torch.distributed.elastic.multiprocessing.subprocess_handler.subprocess_handler", "Popen"),
    ("torch.distributed.elastic.multiprocessing.api", "mp"),
    ("torch.distributed", "TCPStore"),
    ("torch.distributed", "FileStore"),
    ("torch.distributed.distributed_c10d", "HashStore"),
    ("torch.utils.tensorboard", "SummaryWriter"),
    ("torch.utils.tensorboard.writer", "FileWriter"),
    ("torch._C", "PyTorchFileWriter"),
    ("torch", "PyTorchFileReader"),
    ("zipfile", "ZipFile"),
    ("tempfile", "NamedTemporaryFile"),
    ("torch.utils.data._utils.worker", "os"),
    ("torch.nn.parallel.distributed", "copy"),
    ("torch.optim.lr_scheduler", "partial"),
    ("torch.utils._config_module", "install_config_module"),
    ("torch.utils.file_baton", "FileBaton"),
    ("torch.distributed.checkpoint.filesystem", "FileSystemWriter"),
    ("torch.profiler.profiler", "ExecutionTraceObserver"),
    ("torch.utils.data.datapipes.iter.fileopener", "FileOpenerIterDataPipe"),
    ("torch.distributed.run", "run"),
    ("torch.utils.bundled_inputs", "bundle_inputs"),
    ("torch.onnx.utils", "export"),
    ("click.utils", "open_file"),
    ("click.utils", "LazyFile"),
    ("msgspec._core", "defstruct"),
    ("a_package.that_is.nowhere", "Popen"),
]

RESOLVED_TO_DANGER = [
    ("torch.distributed.elastic.multiprocessing.subprocess_handler.subprocess_handler", "Popen"),
    ("torch.distributed.elastic.multiprocessing.api", "os"),
    ("torch.distributed", "TCPStore"),
    ("torch.distributed", "FileStore"),
    ("torch", "PyTorchFileWriter"),
    ("torch.optim.lr_scheduler", "partial"),
    ("torch.nn.modules.module", "functools"),
    ("torch.utils._config_module", "install_config_module"),
    ("click.core", "os"),
]


@pytest.mark.parametrize(("module", "attribute"), ACTING, ids=".".join)
def test_a_gate_fails_an_acting_name(folder, run_gate, module, attribute):
    payload = call(name(module, attribute), text(MARKER))
    path = archive(folder / "x.pth", pickled(mapping(w=tensor(), x=payload)))
    with pytest.raises(Exception, match=r"(?i)weights.?only|Unsupported"):
        torch.load(path, weights_only=True)
    code, output = run_gate(path)
    assert code == 1
    assert f"{module}.{attribute}" in output.replace("\n               ", "")


@pytest.mark.parametrize(("module", "attribute"), RESOLVED_TO_DANGER, ids=".".join)
def test_a_name_is_what_it_resolves_to(module, attribute):
    assert classify_name(module, attribute) is Safety.DANGEROUS


def test_a_name_is_followed_without_importing_anything(tmp_path, monkeypatch):
    package = tmp_path / "acting_package"
    package.mkdir()
    marker = tmp_path / MARKER
    (package / "__init__.py").write_text(f"open({str(marker)!r}, 'w')\n")
    (package / "one.py").write_text("from .two import *\n")
    (package / "two.py").write_text("import subprocess as sp\nRunner = sp.Popen\n")
    (package / "three.py").write_text("from .one import Runner as Net\nclass Sub(Net): pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for module, attribute in (("one", "Runner"), ("three", "Net"), ("three", "Sub")):
        assert classify_name(f"acting_package.{module}", attribute) is Safety.DANGEROUS
    (package / "four.py").write_text("class Net:\n    pass\n")
    assert classify_name("acting_package.four", "Net") is Safety.UNKNOWN
    assert not marker.exists()


@pytest.mark.parametrize(
    "module", ["torch." + "u" * 300, "torch." + "a." * 5000 + "b", "torch.\udcff", "torch..x", ""]
)
def test_a_module_that_no_file_system_has(module):
    """Fuzzing found an OSError: a part of the name was longer than a file's name can be."""
    assert classify_name(module, "Net") in {Safety.UNKNOWN, Safety.DANGEROUS}


def test_a_pickle_that_names_every_module_is_read_in_bounded_work(folder, monkeypatch):
    """Source is parsed up to a number of bytes for each checkpoint, whatever the pickle names."""
    root = Path(torch.__file__).parent
    modules = [
        ".".join(p.relative_to(root.parent).with_suffix("").parts) for p in root.rglob("*.py")
    ]
    names = b"".join(name(module, "Net") + b"0" for module in modules[:2000])
    path = archive(folder / "x.pth", pickled(names + mapping(w=tensor())))
    parsed: list[int] = []
    parse = name_origin.parse_source
    monkeypatch.setattr(
        name_origin, "parse_source", lambda file: parsed.append(file.stat().st_size) or parse(file)
    )
    name_origin._parse_names.cache_clear()
    assert len(open_checkpoint(path).globals) > 1000
    assert sum(parsed) <= 6 << 20


def test_what_torch_allows_is_safe_and_nothing_else_of_torch():
    allowed = {f"{module}.{attribute}" for module, attribute in SAFE_GLOBALS}
    known = torch._weights_only_unpickler._get_allowed_globals()
    assert {key for key in known if key not in allowed} == set()


@pytest.mark.parametrize("value", [argparse.Namespace(lr=1), dt.date(2026, 1, 1)])
def test_inspect_keeps_its_levels(folder, run_gate, value):
    """Unknown is a warning in inspect, and an error in a gate."""
    path = folder / "x.pth"
    torch.save({"w": torch.ones(2), "value": value}, path)
    uses = [use for use in open_checkpoint(path).globals if use.safety is not Safety.SAFE]
    assert {use.safety for use in uses} == {Safety.UNKNOWN}
    assert run_gate(path)[0] == 1
    names = ", ".join(repr(use.qualified_name) for use in uses)
    (folder / "ckptool.toml").write_text(f"[require]\nglobals = [{names}]\n")
    assert run_gate(path)[0] == 0
