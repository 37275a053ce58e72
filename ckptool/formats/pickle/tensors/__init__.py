"""Calls of a pickle that rebuild tensors -> `TensorInfo`s; none of the calls is executed."""
