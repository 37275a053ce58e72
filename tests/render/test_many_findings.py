"""A model of many layers gives no more lines in the formats of CI systems than one of a few."""

import json
import re
from collections import Counter
from xml.etree import ElementTree as ET

import pytest
import torch
from torch import nn

from ckptool import api
from ckptool.render import RenderOptions, render
from ckptool.render.ci_results import MAX_OF_CAUSE

FORMATS = ("junit", "sarif", "gitlab", "github")
LAYERS = 300


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)
        self.mask = torch.ones(2, 2).tril()
        self.register_buffer("scale", torch.ones(2) * 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x) * self.scale + self.mask.sum()


class Stack(nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(count))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    folder = tmp_path_factory.mktemp("many")
    found = {}
    for count in (MAX_OF_CAUSE + 10, LAYERS):
        state = {k: v for k, v in Stack(count).state_dict().items() if "scale" not in k}
        torch.save(state, folder / f"{count}.pth")
        found[count] = api.diff(folder / f"{count}.pth", module=Stack, kwargs={"count": count})
    return found


@pytest.mark.parametrize("form", FORMATS)
def test_lines_do_not_grow_with_the_layers(form: str, reports) -> None:
    few, many = (render(form, reports[n], RenderOptions()) for n in sorted(reports))
    assert len(many.splitlines()) == len(few.splitlines())
    assert len(many) < 1.05 * len(few)


def count_shown(form: str, text: str) -> Counter:
    if form == "sarif":
        return Counter(result["ruleId"] for result in json.loads(text)["runs"][0]["results"])
    if form == "gitlab":
        return Counter(e["check_name"] for e in json.loads(text) if e["check_name"][:2] == "CK")
    cases = ET.fromstring(text).iter("testcase")
    return Counter(
        {
            case.get("name", "").split()[0]: len(
                re.findall(r"\nfix: |\nfollows from ", "".join(case.itertext()))
            )
            for case in cases
            if case.get("name", "").startswith("CK")
        }
    )


@pytest.mark.parametrize("form", FORMATS[:3])
def test_what_is_left_out_is_counted(form: str, reports) -> None:
    report = reports[LAYERS]
    text = render(form, report, RenderOptions())
    shown = count_shown(form, text)
    left_out = Counter[str]()
    for number, code in re.findall(r"([\d,]+) more findings of (CK\d+)", text):
        left_out[code] += int(number.replace(",", ""))
    assert "--format json lists all" in text
    assert shown + left_out == Counter(finding.code for finding in report.findings)
    assert sum(left_out.values()) > 2 * LAYERS
