"""Linear layers with INT8 activations and INT4 or INT8 weights on NVIDIA GPUs, and what they are held against.

``packing`` and ``reference`` are numpy alone. ``tiles`` names the kernels of ``csrc/*.cu``, ``build`` compiles them,
``launch`` runs them on arrays a GPU holds, ``qdp`` and ``plugin_v3`` put them into TensorRT engines.
"""
