"""Write profiles/tiny-adaptive.yaml: the shipped model with the adaptive policy, which knows its costs and acceptance.

What `hispec calibrate` finds is tied to a machine. This profile is for all: its levels are those that were among the
best in every calibration, and its costs, from this machine, matter only in relation to each other.
"""

import argparse
from pathlib import Path

import torch
import yaml
from calibration_setup import CalibrationSetup
from common import held_out_questions

from hispec.adaptation import adaptation_of
from hispec.calibration.recording import LevelSpec
from hispec.calibration.search import Configuration

HEAD = """\
schema: 1
name: tiny-adaptive
description: The model that ships with hispec, with the adaptive policy; what it knows was measured on a CPU.
target:       {{model: "builtin:tiny", dtype: float32}}
draft:        {{exit_layer: {draft}, head: {head_size}}}
intermediate: {{exit_layer: {intermediate}, head: {head_size}}}
single_layer: {{exit_layer: 2, draft_tokens: {single}}}
decoding:     {{draft_tokens: 8, validate_every: 24, policy: adaptive}}
sampling:     {{temperature: 0.0}}
# Written by benchmarks/shipped_profile.py: milliseconds of steps, acceptance by confidence, tokens per millisecond.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draft-exit", type=int, default=2)
    parser.add_argument("--intermediate-exit", type=int, default=4)
    parser.add_argument("--head-size", type=int, default=256)
    parser.add_argument("--single-layer-tokens", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    exits = (args.draft_exit, args.intermediate_exit)
    setup = CalibrationSetup(60.0, held_out_questions(120), exits=exits)
    scorer = setup.scorer()
    configuration = Configuration(tuple(LevelSpec(setup.job.target, exit_, args.head_size) for exit_ in exits))
    known = adaptation_of(scorer.builder.hierarchy(configuration), scorer.performance_model(configuration))
    head = HEAD.format(
        draft=args.draft_exit,
        intermediate=args.intermediate_exit,
        head_size=args.head_size,
        single=args.single_layer_tokens,
    )
    section = {"adaptive": known.model_dump(exclude_none=True, exclude_unset=True)}
    text = head + yaml.safe_dump(section, sort_keys=False, width=110, default_flow_style=None)
    (Path(__file__).parents[1] / "profiles" / "tiny-adaptive.yaml").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
