"""Hierarchical speculative decoding: levels, their shared state, the rules and policies, and the loop."""
