"""Reports of every kind as pages: of the reference case, of large files, of odd names."""

from pathlib import Path

import torch
from msgspec.structs import replace
from paths import SAMPLES
from safetensors.torch import save_file

from ckptool import api
from ckptool.render import RenderOptions, render
from ckptool.reports.any_report import AnyReport
from ckptool.reports.diff_files import ChangeReport

WITHOUT = "samples.attention:CausalAttentionWithoutBuffers"
WITH = "samples.attention:CausalAttentionWithBuffer"
ARGUMENTS = {"d_in": 3, "d_out": 2, "context_length": 6}
KINDS = (
    "inspect",
    "diff",
    "missing",
    "files",
    "audit",
    "verify",
    "migrate",
    "injected",
    "gate",
    "large",
    "odd",
)
ODD = (
    "<script>alert(1)</script>",
    "</title><img src=x onerror=alert(2)>",
    '" onmouseover="alert(3)',
    "{{ 7 * 7 }}{% raw %}",
    "right\u202eto left\u2066",
    "bell\x07 nul\x00 escape\x1b[31m",
    "line\nbreak\ttab",
    "`backtick",
    "&amp;<!-- -->",
    ".",
    "",
    "a..b",
    "wide." * 60 + "weight",
    "\N{PILE OF POO}\N{COMBINING ACUTE ACCENT}",
)


def page(kind: str, folder: Path) -> str:
    """Return the page of one kind of report, as `--format html` gives it."""
    return html(report(kind, folder))


def html(said: AnyReport) -> str:
    return render("html", said, RenderOptions())


def report(kind: str, folder: Path) -> AnyReport:  # noqa: C901, PLR0911
    match kind:
        case "inspect":
            return api.inspect([SAMPLES / "training.pth", SAMPLES / "whole.pth"], pictures=True)
        case "diff":
            return reference()
        case "missing":
            return loading(SAMPLES / "model.pth", WITH)
        case "files":
            return revision(folder)
        case "audit":
            return api.audit(WITHOUT, kwargs=ARGUMENTS, pictures=True)
        case "verify":
            return api.verify(
                SAMPLES / "buffer.pth",
                module=WITH,
                kwargs=ARGUMENTS,
                inputs=("float32[2,6,3]",),
                device="simulated",
                pictures=True,
            )
        case "migrate":
            return api.migrate(
                SAMPLES / "whole.pth",
                folder / "migrated.safetensors",
                module=WITH,
                kwargs=ARGUMENTS,
                force=True,
                pictures=True,
            )
        case "injected":
            return api.migrate(
                SAMPLES / "model.pth",
                folder / "injected.pth",
                module=WITH,
                kwargs=ARGUMENTS,
                inject={"mask": "constructor"},
                force=True,
                pictures=True,
            )
        case "gate":
            return api.gate(SAMPLES / "buffer.pth", module=WITH, kwargs=ARGUMENTS, pictures=True)
        case "large":
            return api.inspect(large(folder, 72), pictures=True)
        case _:
            return odd(folder)


def reference() -> AnyReport:
    """Return the reference case: the file's mask holds 2s, the module's 1s; nothing saves it."""
    return loading(SAMPLES / "whole.pth", WITHOUT)


def loading(path: Path, module: str) -> AnyReport:
    return api.diff(path, module=module, kwargs=ARGUMENTS, pictures=True)


def large(folder: Path, layers: int) -> Path:
    """Write a file of 14 tensors a layer in three dtypes, with a mask in each layer."""
    tensors = {}
    for layer in range(layers):
        at = f"model.layers.{layer}."
        for name in ("q", "k", "v", "o"):
            tensors[f"{at}attention.{name}.weight"] = torch.randn(16, 16, dtype=torch.bfloat16)
            tensors[f"{at}attention.{name}.bias"] = torch.zeros(16)
        tensors[f"{at}attention.mask"] = torch.triu(torch.full((16, 16), -torch.inf), 1)
        tensors[f"{at}mlp.up.weight"] = torch.randn(64, 16, dtype=torch.float16)
        tensors[f"{at}mlp.down.weight"] = torch.randn(16, 64, dtype=torch.float16)
        for name in ("norm1", "norm2", "norm3"):
            tensors[f"{at}{name}.weight"] = torch.ones(16)
    save_file(tensors, folder / f"large-{layers}.safetensors", metadata={"format": "pt"})
    return folder / f"large-{layers}.safetensors"


def revision(folder: Path) -> AnyReport:
    """Return two files that differ in every way there is, and by how much."""
    old = {f"block.{i}.weight": torch.randn(8, 8) for i in range(6)}
    old |= {
        "mask": torch.triu(torch.ones(6, 6), 1),
        "gone": torch.ones(64),
        "turned": torch.ones(4),
    }
    new = {key: value.clone() for key, value in old.items() if key != "gone"}
    new |= {"mask": old["mask"] * 2, "turned": torch.ones(5), "come": torch.ones(32)}
    new["mask"][0, 0], new["mask"][1, 0], new["mask"][2, 0] = torch.nan, torch.inf, -torch.inf
    for i in range(5):
        new[f"block.{i}.weight"] *= 1 + 0.0005 * 10**i
    for name, tensors in (("old", old), ("new", new)):
        save_file(tensors, folder / f"{name}.safetensors", metadata={"format": "pt"})
    told = api.diff(folder / "old.safetensors", folder / "new.safetensors", pictures=True)
    changes = tuple(change(f"block.{i}.weight", 0.0005 * 10**i, i) for i in range(5))
    return replace(told, changes=changes)


def change(key: str, relative: float, first: int) -> ChangeReport:
    return ChangeReport(
        key=key,
        old_dtype="float32",
        new_dtype="float32",
        elements=64,
        changed=60,
        max_abs=relative,
        mean_abs=relative / 2,
        relative_l2=relative,
        cosine=0.99,
        close=False,
        rounding=False,
        old_nonfinite=0,
        new_nonfinite=0,
        histogram=tuple(10 * (first + 5 <= place < first + 11) for place in range(17)),
    )


def odd(folder: Path) -> AnyReport:
    """Return a file whose keys are meant to get out of a page."""
    tensors = {key: torch.eye(4) * 2 for key in ODD}
    torch.save(tensors, folder / "odd.pth")
    return api.inspect(folder / "odd.pth", pictures=True)
