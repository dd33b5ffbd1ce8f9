"""The command `hispec chat`: its input, its slash commands and its answers."""
