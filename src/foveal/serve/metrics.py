"""Figures for Prometheus."""

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_FAST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_SLOW = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """All figures of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        r = self.registry
        self.requests = Counter("foveal_requests", "Requests by path and status.", ["path", "status"], registry=r)
        self.seconds = Histogram("foveal_request_seconds", "Whole requests.", ["path"], buckets=_SLOW, registry=r)
        self.first = Histogram("foveal_first_token_seconds", "Arrival to first token.", buckets=_FAST, registry=r)
        self.loop = Histogram(
            "foveal_event_loop_lag_seconds", "How late the server's loop runs.", buckets=_FAST, registry=r
        )
        self.prompt = Counter("foveal_prompt_tokens", "Tokens of prompts, visual ones included.", registry=r)
        self.answer = Counter("foveal_answer_tokens", "Tokens of answers.", registry=r)
        self.cached = Counter(
            "foveal_cached_prompt_tokens", "Tokens of prompts that were not computed again.", registry=r
        )
        self.media = Counter("foveal_media", "Media that were opened, by kind.", ["kind"], registry=r)
        self.aborted = Counter("foveal_aborted_requests", "Requests whose client left before the end.", registry=r)
        self._gauges: dict[str, Gauge] = {}

    def text(self, now: dict[str, Any]) -> bytes:
        """Everything as text; `now` are figures of this moment, by name."""
        for name, value in now.items():
            if name not in self._gauges:
                self._gauges[name] = Gauge(f"foveal_{name}", name.replace("_", " "), registry=self.registry)
            self._gauges[name].set(float(value))
        return generate_latest(self.registry)
