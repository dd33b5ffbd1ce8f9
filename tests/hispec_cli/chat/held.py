"""The real program, held at the step that a test names in a file: `python -m tests.hispec_cli.chat.held chat ...`.

The file says `LEVEL` or `LEVEL COUNT` (prefill, draft, intermediate, target), the step that is held, once; `memory` in
the place of the level lets the memory end at a verification of the target. While it is held the file is named `held`. A
step that is `stuck LEVEL COUNT` does not end when it is asked to, as one of a big model may not. `slow` makes all steps
take a tenth of a second.
"""

import os
import time
from pathlib import Path

import torch

from hispec.decoding.engine import DecodeLoop
from hispec_cli.__main__ import main

CONTROL = Path(os.environ["HELD_AT"])


def stop_at(decoding, step):
    if not CONTROL.exists():
        return
    text = CONTROL.read_text()
    if text == "slow":
        time.sleep(0.1)
    wanted, _, count = text.removeprefix("stuck ").partition(" ")
    decoding.seen = getattr(decoding, "seen", {})
    decoding.seen[step] = decoding.seen.get(step, 0) + 1
    if step != wanted.replace("memory", "target") or decoding.seen[step] < int(count or 1):
        return
    CONTROL.rename(CONTROL.with_name("held"))
    if wanted == "memory":
        raise torch.OutOfMemoryError("CUDA out of memory")
    while text.startswith("stuck") or not decoding.stop.interrupted():
        time.sleep(0.01)


def held(method, name_of_step):
    def step(self, *arguments):
        stop_at(self, name_of_step(self, arguments))
        return method(self, *arguments)

    return step


DecodeLoop.prefill = held(DecodeLoop.prefill, lambda *_: "prefill")
DecodeLoop.draft = held(DecodeLoop.draft, lambda *_: "draft")
DecodeLoop.verify = held(DecodeLoop.verify, lambda self, arguments: self.names[arguments[0]])

if __name__ == "__main__":
    main()
