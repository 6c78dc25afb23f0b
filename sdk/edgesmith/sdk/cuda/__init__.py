"""CUDA from Python: the context, buffers, graphs and the preprocess kernel that the GPU backends share.

Nothing here is imported, and no GPU is touched, before a GPU backend is opened. pycuda's driver module
is passed in as ``driver`` everywhere, so that :class:`edgesmith.sdk.testing.fake_cuda.FakeCuda` can
stand in for it.
"""
