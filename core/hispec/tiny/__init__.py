"""The shipped early-exit model: the generator of its text, its training recipe, and (in `model/`) its weights."""
