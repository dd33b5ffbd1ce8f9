"""The page of a calibration."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hispec.calibration.session import Calibrated, Job


def write_calibration_report(
    path: Path, job: Job, result: Calibrated, environment: Mapping[str, Any], command: Sequence[str]
) -> None:
    """Write it, whole or not at all."""
    raise NotImplementedError
