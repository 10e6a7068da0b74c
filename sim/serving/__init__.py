"""Serving: requests that arrive, queue and decode in batches, with and without speculation."""

from sim.serving.scenario import Objective, Prefill, ServingScenario, Speculation
from sim.serving.server import serve

__all__ = ["Objective", "Prefill", "ServingScenario", "Speculation", "serve"]
