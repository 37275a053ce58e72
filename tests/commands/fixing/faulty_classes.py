# ruff: noqa: E501 - sources in strings
"""Classes with state that no state_dict saves: those that `fix` repairs, and those it refuses."""

from commands.fixing.awkward_classes import AWKWARD_FIXED, AWKWARD_REFUSED
from commands.fixing.source_parts import HEAD, make_class

FIXED = {
    # a tensor that is the same each time
    "mask": make_class("self.mask = torch.tril(torch.ones(4, 4))", "return self.linear(x) * self.mask.sum()"),
    "scalar": make_class("self.scale = torch.tensor(2.0)", "return self.linear(x) * self.scale"),
    "integer": make_class("self.index = torch.arange(4)", "return self.linear(x)[:, self.index]"),
    "boolean": make_class(
        "self.keep = torch.ones(4).bool()", "return self.linear(x).masked_fill(self.keep, 0.0)"
    ),
    "annotated": make_class("self.mask: torch.Tensor = torch.ones(4)", "return self.linear(x) * self.mask"),
    "many_lines": make_class(
        """
        self.mask = torch.triu(
            torch.ones(4, 4),  # all
            diagonal=1,
        )
        """,
        "return self.linear(x) * self.mask.sum()",
    ),
    "commented": make_class("self.mask = torch.ones(4)  # not trained", "return self.linear(x) * self.mask"),
    "in_parentheses": make_class("self.mask = (torch.ones(4)\n             * 3)", "return self.linear(x) * self.mask"),
    "two_on_a_line": make_class("self.n = 4; self.mask = torch.ones(self.n)", "return self.linear(x) * self.mask"),
    "in_with": make_class(
        "with torch.no_grad():\n    self.mask = torch.ones(4)", "return self.linear(x) * self.mask"
    ),
    "of_local": make_class(
        "mask = torch.ones(4)\nmask[0] = 0.0\nself.mask = mask", "return self.linear(x) * self.mask"
    ),
    "doubled_from_outside": make_class("self.mask = torch.ones(4)", "return self.linear(x) * self.mask")
    + "\n\ndef double(net):\n    net.mask *= 2\n",
    "counted_in_forward": make_class(
        "self.calls = torch.zeros(1)", "self.calls += 1\nreturn self.linear(x)"
    ),
    "in_helper": make_class(
        "self._build()",
        "return self.linear(x) * self.table",
        "def _build(self):\n    self.table = torch.arange(4.0)",
    ),
    "complex": make_class(
        "self.spin = torch.polar(torch.ones(4), torch.zeros(4))",
        "return torch.view_as_real(self.linear(x) * self.spin)",
    ),
    "nested": HEAD.replace("class Net", "class Inner")
    + "        self.mask = torch.ones(4)\n\n    def forward(self, x):\n        return x * self.mask\n\n\n"
    + "class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
    "        self.inner = Inner()\n        self.other = Inner()\n\n"
    "    def forward(self, x):\n        return self.other(self.inner(x))\n",
    "inherited": HEAD.replace("class Net", "class Base")
    + "        self.mask = torch.ones(4)\n\n\n"
    + "class Net(Base):\n    def forward(self, x):\n        return self.linear(x) * self.mask\n",
    "positional_encoding": make_class(
        """
        position = torch.arange(4).unsqueeze(1)
        table = torch.zeros(4, 4)
        table[:, 0::2] = torch.sin(position)
        self.pe = table
        """,
        "return self.linear(x) + self.pe[0]",
    ),
    "aliased_import": make_class("self.mask = th.ones(4)", "return self.linear(x) * self.mask").replace(
        "import torch\nfrom torch import nn", "import torch as th\nimport torch.nn as nn"
    ),
    # a tensor that changes, or differs each time
    "random": make_class("self.noise = torch.randn(4)", "return self.linear(x) + self.noise"),
    "projection": make_class("self.basis = torch.linalg.qr(torch.rand(4, 4))[0]", "return self.linear(x) @ self.basis"),
    "counter": make_class(
        "self.steps = torch.zeros(1)", "self.steps.add_(1)\nreturn self.linear(x) * 1.0"
    ),
    "running_mean": make_class(
        "self.mean = torch.zeros(4)",
        "self.mean.mul_(0.9).add_(x.mean(0), alpha=0.1)\nreturn self.linear(x) - self.mean",
    ),
    "filled_in_place": make_class(
        "self.cache = torch.zeros(2, 4)", "self.cache[:] = x.detach()\nreturn self.linear(self.cache)"
    ),
    # NumPy arrays
    "array": make_class("self.mean = np.zeros(4)", "return self.linear(x) - torch.as_tensor(self.mean).float()"),
    "array_from_numpy": make_class(
        "self.mean = np.ones(4, dtype=np.float32)", "return self.linear(x) - torch.from_numpy(self.mean)"
    ),
    "array_unused": make_class("self.edges = np.linspace(0.0, 1.0, 5)"),
    # lists and dicts of modules
    "modules": make_class(
        "self.convs = [nn.Linear(4, 4) for _ in range(2)]",
        "for conv in self.convs:\n    x = conv(x)\nreturn self.linear(x)",
    ),
    "modules_appended": make_class(
        "self.layers = []\nfor _ in range(2):\n    self.layers.append(nn.Linear(4, 4))",
        "for layer in self.layers:\n    x = layer(x)\nreturn x",
    ),
    "modules_dict": make_class(
        'self.heads = {"a": nn.Linear(4, 4), "b": nn.Linear(4, 2)}',
        "return {name: head(x) for name, head in self.heads.items()}",
    ),
    "modules_comprehension": make_class(
        'self.heads = {name: nn.Linear(4, 4) for name in ("a", "b")}', 'return self.heads["a"](x)'
    ),
    "modules_tuple": make_class(
        "self.pair = (nn.Linear(4, 4), nn.Linear(4, 4))", "return self.pair[0](x) + self.pair[1](x)"
    ),
    "modules_list_call": make_class(
        "self.blocks = list(nn.Linear(4, 4) for _ in range(2))", "return self.blocks[1](x)"
    ),
    "modules_multi_line": make_class(
        """
        self.convs = [
            nn.Linear(4, 4),  # first
            nn.Linear(4, 4),
        ]
        """,
        "return self.convs[1](self.convs[0](x))",
    ),
    "modules_no_import": make_class(
        "self.convs = [Linear(4, 4)]", "return self.convs[0](x)"
    ).replace("import torch\nfrom torch import nn", "from torch.nn import Linear, Module").replace(
        "nn.Module", "Module"
    ).replace("nn.Linear", "Linear"),
    # lists and dicts of parameters and tensors
    "parameters": make_class(
        "self.scales = [nn.Parameter(torch.ones(1))]", "return self.linear(x) * self.scales[0]"
    ),
    "parameters_dict": make_class(
        'self.scales = {"a": nn.Parameter(torch.ones(4))}', 'return self.linear(x) * self.scales["a"]'
    ),
    "parameters_random": make_class(
        "self.tokens = [nn.Parameter(torch.randn(4)) for _ in range(2)]",
        "return self.linear(x) + self.tokens[0] + self.tokens[1]",
    ),
    "tensors": make_class("self.banks = [torch.zeros(4), torch.ones(4)]", "return self.linear(x) + self.banks[1]"),
    "tensors_dict": make_class(
        'self.banks = {"k": torch.ones(4)}', 'return self.linear(x) + self.banks["k"]'
    ),
    "tensors_comprehension": make_class(
        "self.banks = [torch.full((4,), float(n)) for n in range(3)]", "return x + self.banks[2]"
    ),
    "tensors_call": make_class(
        "self.banks = list(torch.eye(4))", "return self.linear(x) + self.banks[0]"
    ),
    # tensors that forward creates
    "created": make_class("pass", "return self.linear(x) + torch.arange(4)"),
    "created_with_arguments": make_class(
        "pass", "steps = torch.zeros(4, dtype=torch.float32)\nreturn self.linear(x) + steps"
    ),
    **AWKWARD_FIXED,
}  # fmt: skip
"""Name of a file -> its source, which has a class Net."""

NOT_SWITCHED_BY_EVAL = make_class(
    "self.norms = [nn.BatchNorm1d(4)]", "return self.norms[0](self.linear(x))"
)
"""A class that computes something else once eval() reaches its layers."""

REFUSED = {
    "deleted": (
        make_class("self.mask = torch.ones(4)", more="def clear(self):\n    del self.mask"),
        "it is deleted at",
    ),
    "aliased": (make_class("self.mask = torch.ones(4)\nself.other = self.mask"), "name"),
    "alias_of_local": (
        make_class("mask = torch.ones(4)\nself.mask = mask\nself.other = mask", "self.mask.add_(1)\nreturn self.linear(x) * self.other"),
        "shares its memory",
    ),
    "from_outside": (
        make_class("self.mask = torch.ones(4)") + "\n\ndef reset(net):\n    net.mask = torch.zeros(4)\n",
        "set from outside",
    ),
    "of_child": (
        HEAD + "        self.linear.mask = torch.ones(4)\n\n    def forward(self, x):\n        return x\n",
        "outside of its class",
    ),
    "chained": (make_class("self.mask = self.cover = torch.ones(4)", "self.mask.add_(1)\nreturn self.linear(x)"), "shares its memory"),
    "by_property": (
        make_class(
            "self.mask = torch.ones(4)",
            more="""
            @property
            def mask(self):
                return self._mask

            @mask.setter
            def mask(self, value):
                self._mask = value
            """,
        ),
        'write self.register_buffer("_mask", None) after super().__init__()',
    ),
    "of_the_class": (
        HEAD.replace("    def", "    mask = torch.ones(4)\n\n    def")
        + "\n    def forward(self, x):\n        return self.linear(x) * self.mask\n",
        "an attribute of the class",
    ),
    "before_super": (
        make_class("pass", "return self.linear(x) * self.mask").replace(
            "        super()", '        self.__dict__["mask"] = torch.ones(4)\n        super()'
        ),
        "",
    ),
    "in_lambda": (
        make_class("(lambda: setattr(self, 'mask', torch.ones(4)))()"),
        "in a lambda",
    ),
    "dict_of_numbers": (
        make_class("self.heads = {1: nn.Linear(4, 4)}", "return self.heads[1](x)"),
        "keys are not strings",
    ),
    "nested_container": (
        make_class("self.banks = [[torch.ones(4)]]", "return x + self.banks[0][0]"),
        "nested container",
    ),
    "arrays": (make_class("self.edges = [np.zeros(4)]"), "a container of arrays"),
    "sorted_container": (
        make_class("self.convs = [nn.Linear(4, 4)]\nself.convs.reverse()"),
        "with .reverse",
    ),
    "container_of_local": (
        make_class("convs = [nn.Linear(4, 4)]\nself.convs = convs\nconvs.append(nn.Linear(4, 4))"),
        "also the variable",
    ),
    "numpy_arithmetic": (
        make_class("self.mean = np.zeros(4)", "return self.linear(x) + float(self.mean.sum())"),
        "used as a NumPy array",
    ),
    "first_in_forward": (
        make_class("self.prepare()", "return self.convs[0](x)", "def prepare(self):\n    self.convs = [nn.Linear(4, 4)]")
        + "\n    def reset(self):\n        self.prepare()\n",
        "in prepare(), not in the constructor",
    ),
    **AWKWARD_REFUSED,
}  # fmt: skip
"""Name of a file -> its source, and a part of the reason; "" where nothing is found at all."""
