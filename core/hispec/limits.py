"""The largest numbers that options, variables, profiles and chat commands take, the same wherever they are given."""

MOST = 2**31 - 1
"""Of tokens, rows, steps and other counts."""
WIDEST_PASS = 64
"""Rows of the widest pass that `width` may ask for."""
LARGEST_SEED = 2**63 - 1
"""What every generator of random numbers here takes."""
