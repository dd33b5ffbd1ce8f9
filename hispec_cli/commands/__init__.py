"""One module or folder a command: options in, the engine's events to a view, nothing else."""
