"""What people see: plain text for pipes, messages on stderr."""
