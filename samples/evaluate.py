"""Loads model.pth into the module with the plain attribute: the mask is not loaded."""

import torch
from attention import CausalAttentionWithoutBuffers

model = CausalAttentionWithoutBuffers(d_in=3, d_out=2, context_length=6)
model.load_state_dict(torch.load("samples/model.pth"))
