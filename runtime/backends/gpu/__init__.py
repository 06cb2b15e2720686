"""Buffers, streams and events of an NVIDIA GPU behind one small layer, with pycuda or cuda-python below it."""
