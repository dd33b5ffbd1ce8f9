"""Usable exits for models that were not trained for early exit."""
