"""Benchmarks: decoding methods measured side by side, and what can be said of them with confidence."""
