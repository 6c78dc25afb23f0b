"""The CUDA sources, and ``prepare.ptx``: the same compiled to portable assembly, see :mod:`..compile`."""
