"""The command `hispec bench`: its options, the request, the run and its output."""
