"""An engine behind HTTP, in the protocol of OpenAI's API: `app` has the routes, `answering` the one engine behind them.

Needs the extra `serve`.
"""
