"""Metrics for Prometheus."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from hispec.metrics import Stats

SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)


class Metrics:
    """Counts of one server.

    Args:
        waiting: returns how many prompts wait.
    """

    def __init__(self, waiting: Callable[[], int]) -> None:
        self._registry = CollectorRegistry()

        def counter(name: str, told: str, *labels: str) -> Counter:
            return Counter(f"hispec_{name}", told, labels, registry=self._registry)

        def histogram(name: str, told: str) -> Histogram:
            return Histogram(f"hispec_{name}_seconds", told, buckets=SECONDS, registry=self._registry)

        gauge = Gauge("hispec_waiting_prompts", "Prompts that wait for their turn.", registry=self._registry)
        gauge.set_function(waiting)
        self.answering = Gauge("hispec_answering", "1 while a prompt is being answered.", registry=self._registry)
        self.responses = counter("responses", "Responses by path and HTTP status.", "path", "status")
        self.ended = counter("answers", "Answers by how they ended.", "end")
        self._prompt = counter("prompt_tokens", "Tokens of prompts.")
        self._cached = counter("cached_tokens", "Tokens of prompts that were in the KV cache.")
        self._new = counter("generated_tokens", "Tokens of answers.")
        self._passes = counter("target_passes", "Passes of the target.")
        self._proposed = counter("proposed_tokens", "Tokens that a level proposed.", "level")
        self._accepted = counter("accepted_tokens", "Of them, those that the next level accepted.", "level")
        self.waited = histogram("wait", "From a prompt's arrival to its turn.")
        self._first = histogram("first_token", "From a prompt's turn to its first token.")
        self._seconds = histogram("answer", "What the engine worked for an answer.")

    def see(self, stats: Stats) -> None:
        """Count an answer, however it ended."""
        self._prompt.inc(stats.prompt_tokens)
        self._cached.inc(stats.cached_tokens)
        self._new.inc(stats.new_tokens)
        self._passes.inc(stats.target_passes)
        for level in stats.levels:
            self._proposed.labels(level.name).inc(level.proposed)
            self._accepted.labels(level.name).inc(level.accepted)
        if stats.time_to_first_token_s is not None:
            self._first.observe(stats.time_to_first_token_s)
        self._seconds.observe(stats.total_seconds)

    def written(self) -> bytes:
        """Return all counts in the text format of Prometheus."""
        return generate_latest(self._registry)
