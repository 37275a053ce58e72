"""Loads model.pth into the module with the buffer: load_state_dict reports a missing key."""

import torch
from attention import CausalAttentionWithBuffer

model = CausalAttentionWithBuffer(d_in=3, d_out=2, context_length=6)
model.load_state_dict(torch.load("samples/model.pth"))
