"""Devices a forward pass runs on: CPU, CUDA, the simulated device."""
