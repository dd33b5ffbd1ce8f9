"""The configuration that an engine's answers depend on; only runs with equal configurations are resumed or compared."""

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from hispec.models.digest import digests_of_profile

if TYPE_CHECKING:
    from hispec.api import Engine


def configuration_of(engine: "Engine", max_new_tokens: int | None = None) -> dict[str, Any]:
    """Return the configuration of an engine as JSON values.

    Args:
        engine: the engine that answers.
        max_new_tokens: the limit of an answer, in place of the one in the settings.
    """
    levels = engine.profile.model_dump(
        mode="json", include={"target", "draft", "intermediate", "single_layer", "adaptive", "chat_template"}
    )
    limit = {} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}
    return {
        "hispec": version("hispec"),
        "profile": {"name": engine.profile.name, **levels},
        "files": digests_of_profile(engine.profile, dummy=engine.settings.load_format == "dummy"),
        "settings": engine.settings.to_record() | limit,
        **({"generation_config": options} if (options := engine.generation.to_record()) else {}),
    }
