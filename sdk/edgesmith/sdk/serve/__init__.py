"""A bundle behind HTTP: pictures in, detections out, for people and for NVIDIA's clients.

client -> protocol (limits) -> access (who) -> plain | openinference -> engine (batches) -> answer
"""

from edgesmith.sdk.serve.service import Service
from edgesmith.sdk.serve.settings import ServiceSettings, Tls, Token

__all__ = ["Service", "ServiceSettings", "Tls", "Token"]
