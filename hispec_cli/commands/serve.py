"""`hispec serve`: a model behind HTTP, for clients of OpenAI's API."""

import os
from typing import Annotated

import typer

from hispec.errors import UsageError
from hispec.extras import require
from hispec_cli.checks import choose
from hispec_cli.engine import load_engine
from hispec_cli.help import examples
from hispec_cli.options import AnswerOptions, CommonOptions, ModelOptions, grouped
from hispec_cli.ui.console import say

EXAMPLES = examples("hispec serve --profile tiny", "hispec serve --model ./my-model --port 8080")
KEY = "HISPEC_API_KEY"


@grouped
def serve(
    *,
    model: ModelOptions,
    decoding: AnswerOptions,
    host: Annotated[
        str,
        typer.Option(
            rich_help_panel="Server",
            metavar="ADDRESS",
            help="Address to listen on; 0.0.0.0 accepts connections from other machines.",
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option(
            rich_help_panel="Server", min=0, max=65535, metavar="N", help="Port to listen on; 0 chooses a free one."
        ),
    ] = 8000,
    queue: Annotated[
        int,
        typer.Option(
            rich_help_panel="Server",
            min=1,
            max=100_000,
            metavar="N",
            help="Maximum number of waiting prompts; further ones get status 429.",
        ),
    ] = 64,
    max_body: Annotated[
        float,
        typer.Option(rich_help_panel="Server", min=0.001, max=1000, metavar="MB", help="Maximum size of a request."),
    ] = 4.0,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            rich_help_panel="Server",
            metavar="ORIGIN",
            show_default="none",
            help="Origin of web pages that may send requests, e.g. https://example.org; * allows all. Repeatable.",
        ),
    ] = None,
    grace: Annotated[
        float,
        typer.Option(
            rich_help_panel="Server",
            min=0,
            max=86400,
            metavar="SECONDS",
            help="Time to finish the current answer after SIGTERM or Ctrl-C; a second signal ends it at once.",
        ),
    ] = 30.0,
    common: CommonOptions,
) -> None:
    """Serve OpenAI's API: /v1/chat/completions, /v1/completions, /v1/models; also /health, /metrics.

    Requests are answered one at a time. If HISPEC_API_KEY is set, requests must send it as a bearer token.
    """
    require("serve", "a server")
    token = read_key()
    choice = choose(model, decoding)
    from hispec.server.running import is_loopback, listen, run

    listening = listen(host, port)  # before the model is loaded, so that a port in use is reported at once
    engine = load_engine(choice)
    from hispec.server.answering import Answering
    from hispec.server.app import Rules, make_app

    answering = Answering(engine, queue)
    app = make_app(answering, Rules(token, round(max_body * 1_000_000), tuple(allow_origin or ())))
    name, number = listening.getsockname()[:2]

    def ready() -> None:
        shown = f"[{name}]" if ":" in name else name
        say(f"{engine.profile.name} on {engine.environment['device']}, ready at http://{shown}:{number}/v1")
        if not is_loopback(name):
            say(f"other machines can connect: anyone who reaches port {number} can use the model", "yellow")
            if token is None:
                say(f"no key is required: set {KEY} to require one", "yellow")

    run(app, answering, listening, grace, ready)
    say("stopped")


def read_key() -> str | None:
    """Return the key that requests must bear, None where they need none.

    Raises:
        UsageError: one that no header can have.
    """
    key = os.environ.get(KEY)
    if key is not None and (not key or not key.isascii() or not key.isprintable() or " " in key):
        raise UsageError(f"{KEY} is empty, or has blanks or other than ASCII characters", "set another, or unset it")
    return key
