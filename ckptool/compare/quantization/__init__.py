"""Tensors -> quantised weights, what they lack, and how they differ from another side's."""
