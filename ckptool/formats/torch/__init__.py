"""Containers written by torch: zip, legacy, tar, TorchScript, torch.export."""
