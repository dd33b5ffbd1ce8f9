"""How a download is going: its size first; then, where the hub client's bars are not shown, a plain line now and then."""

import sys
from time import monotonic
from typing import TYPE_CHECKING

from hispec.counts import counted
from hispec_cli.ui.console import say

if TYPE_CHECKING:
    from hispec.models.checkpoint import Download

EVERY_S = 30.0
SHARE = 0.1


class DownloadProgress:
    """Tells a person how far a download is."""

    def __init__(self) -> None:
        self._said = -1.0
        self._said_at = 0.0

    def see(self, download: "Download") -> None:
        """Take news into account: at the start, and every tenth of the size or 30 seconds where no bar says it."""
        share, now = download.done / max(download.size, 1), monotonic()
        if self._said < 0:
            say(f"downloading {counted(download.files, 'file')}, {_shown(download.size)}")
        elif sys.stderr.isatty() or not (
            share >= self._said + SHARE - 1e-9 or now >= self._said_at + EVERY_S or share >= 1 > self._said
        ):
            return
        else:
            say(f"downloaded {_shown(download.done)} of {_shown(download.size)}")
        self._said, self._said_at = share, now


def _shown(size: int) -> str:
    """Bytes as the hub shows them, in thousands."""
    if size < 1000:
        return f"{size} B"
    power = min(4, (len(str(size)) - 1) // 3)
    return f"{size / 1000**power:.1f} {'kMGT'[power - 1]}B"
