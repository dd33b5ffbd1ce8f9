"""What the arms of a benchmark are called. Imports nothing, so that `--help` can name them at once."""

OWN_ARMS = ("hispec", "single-layer", "autoregressive")
TRANSFORMERS_ARMS = ("hf", "hf-early-exit", "hf-assisted", "prompt-lookup")
ARMS = (*OWN_ARMS, *TRANSFORMERS_ARMS)
REFERENCE = "autoregressive"
"""The arm whose token ids every other must write."""

BASELINES = ("autoregressive", "hf", "single-layer")
"""The arms that speed-ups are stated against, where the same run measured them."""
