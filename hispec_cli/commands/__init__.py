"""One module a command: options in, the engine's events to a view, nothing else."""
