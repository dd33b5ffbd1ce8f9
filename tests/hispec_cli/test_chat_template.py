"""`--chat-template FILE`: for every command that encodes prompts, refused before loading, kept where it matters."""

from hispec_cli.commands.chat import open_session  # noqa: F401
