"""The command `hispec calibrate`: its options, the request, the run and its output."""
