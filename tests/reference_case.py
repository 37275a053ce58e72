"""The numbers of the reference case: what CPU and CUDA must give, to 4 decimals."""

import torch

WITHOUT_BUFFERS = torch.tensor(
    [
        [-0.4519, 0.2216],
        [-0.5874, 0.0058],
        [-0.6300, -0.0632],
        [-0.5675, -0.0843],
        [-0.5526, -0.0981],
        [-0.5299, -0.1081],
    ]
)
WITH_BUFFER = torch.tensor(
    [
        [0.4772, 0.1063],
        [0.5891, 0.3257],
        [0.6202, 0.3860],
        [0.5478, 0.3589],
        [0.5321, 0.3428],
        [0.5077, 0.3493],
    ]
)
W_QUERY_WITHOUT = torch.tensor([[-0.2354, 0.0191, -0.2867], [0.2177, -0.4919, 0.4232]])
W_QUERY_WITH = torch.tensor([[-0.1362, 0.1853, 0.4083], [0.1076, 0.1579, 0.5573]])
ARGUMENTS = {"d_in": 3, "d_out": 2, "context_length": 6, "dropout": 0.0, "qkv_bias": False}
TOLERANCE = 1e-4
"""The numbers were written down to 4 decimals."""


def assert_outputs(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Both items of the batch, moved to the CPU, equal `expected` within the tolerance."""
    wanted = expected.expand(2, -1, -1)
    torch.testing.assert_close(actual.detach().cpu(), wanted, atol=TOLERANCE, rtol=0)
