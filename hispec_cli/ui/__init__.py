"""Output for people: views, progress and reports on stdout, messages on stderr."""
