"""Packages that only some commands need: the extras of pip that install them, and the error where they are missing."""

from importlib.util import find_spec

from hispec.errors import UnavailableError

EXTRAS = {
    "bench": ("datasets", "rouge_score"),
    "report": ("matplotlib", "jinja2"),
    "chat": ("prompt_toolkit",),
    "gguf": ("gguf",),
    "grammar": ("llguidance",),
    "quantization": ("bitsandbytes",),
    "serve": ("fastapi", "uvicorn", "prometheus_client"),
}
"""Importable packages by the extra that installs them, as in pyproject.toml."""


def require(extra: str, purpose: str, *packages: str) -> None:
    """Raise if packages of an extra are not installed; call it before they are imported.

    Args:
        extra: a key of `EXTRAS`.
        purpose: the feature that needs the packages; it is the subject of the error message.
        packages: the packages of the extra that are needed; by default all.

    Raises:
        UnavailableError: naming the first missing package, and the command that installs it.
    """
    for package in packages or EXTRAS[extra]:
        if find_spec(package) is None:
            raise UnavailableError(
                f"{purpose} needs {package}, which is not installed", f"install it: pip install 'hispec[{extra}]'"
            )
