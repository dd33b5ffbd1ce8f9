"""`hispec calibrate`: its options, what is asked for, the run and what comes of it."""
