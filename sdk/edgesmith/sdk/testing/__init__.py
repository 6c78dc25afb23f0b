"""Devices that are not there: real classes that keep to the documented contracts, for tests without a GPU.

    fake_tensorrt.make(version="10.3.0")     builds engines, and runs them through onnxruntime

They are deterministic, and faults can be planted. An integrator's own tests use them by setting
``EDGESMITH_TENSORRT=edgesmith.sdk.testing.fake_tensorrt:make?version=10.3.0``.
"""
