"""What the handlers of both interfaces share."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field

from edgesmith.sdk.serve.budget import Budget
from edgesmith.sdk.serve.metrics import Metrics
from edgesmith.sdk.serve.refusal import Refusal
from edgesmith.sdk.serve.served import Served
from edgesmith.sdk.serve.settings import ServiceSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """A service at work: its models by name, the threads that decode, the bytes requests hold."""

    settings: ServiceSettings
    models: Mapping[str, Served]
    pool: Executor
    budget: Budget
    metrics: Metrics
    draining: threading.Event = field(default_factory=threading.Event)

    def served(self, name: str) -> Served:
        """A model by its name.

        Raises:
            Refusal: 404, there is none.
        """
        found = self.models.get(name)
        if found is None:
            known = ", ".join(self.models)
            raise Refusal(404, f"no model is called {name[:80]!r}; there are {known}")
        return found
