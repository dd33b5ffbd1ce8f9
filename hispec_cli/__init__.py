"""The `hispec` command: options in, engine events out to a terminal, a pipe or a file."""
