"""Benchmarks: decoding methods measured side by side, with confidence intervals."""
