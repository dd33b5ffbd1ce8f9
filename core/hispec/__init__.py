"""HiSpec: hierarchical speculative decoding that never changes the target's output.

from hispec import Engine

engine = Engine.from_profile("tiny")
print(engine.generate("Anna has 3 apples. Ben has 4 times as many. How many do they have together?").text)
"""

from typing import TYPE_CHECKING, Any

__all__ = ["Engine", "Generation", "__version__", "custom_generate"]

if TYPE_CHECKING:
    from hispec.answer import Generation
    from hispec.api import Engine
    from hispec.transformers_generate import custom_generate

    __version__: str


def __getattr__(name: str) -> Any:
    """Import slow modules only when they are used, so that the command line starts fast."""
    if name in ("Engine", "Generation"):
        from hispec import api

        return getattr(api, name)
    if name == "custom_generate":
        from hispec.transformers_generate import custom_generate

        return custom_generate
    if name == "__version__":
        from importlib.metadata import version

        return version("hispec")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
