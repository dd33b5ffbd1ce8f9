r"""Write random weights that agree as often as asked as a checkpoint, so that finding them is done once.

Loading them takes seconds, where finding them for a billion parameters takes two cores of a CPU some ten minutes.

    python benchmarks/dummy_checkpoint.py --model facebook/layerskip-llama3.2-1B --exits 1,4 \
        --agreement .68,.81,int4=.97 --threads 2 --out DIR
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from hispec import Engine
from hispec.models import agreement
from hispec.models.checkpoint import Checkpoint
from hispec.models.checkpoint_files import CONFIG
from hispec.models.fused_stack import FusedStack
from hispec.profile import profile_for_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a folder or hub id whose shape is known")
    parser.add_argument("--exits", default="1,4", help="draft and intermediate exit")
    parser.add_argument("--agreement", required=True, help="as the setting dummy_agreement has it")
    parser.add_argument("--positions", type=int, default=agreement.POSITIONS, help="that agreement is set on")
    parser.add_argument("--dtype", default="bfloat16", help="of the weights")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    agreement.POSITIONS = args.positions
    draft, intermediate = (int(at) for at in args.exits.split(","))
    profile = profile_for_model(args.model, 16, draft, intermediate)
    engine = Engine.from_profile(
        profile, mode="hispec", dtype=args.dtype, load_format="dummy", dummy_agreement=args.agreement
    )
    config = Checkpoint(args.model, dummy=True).read_here(CONFIG) or {}
    args.out.mkdir(parents=True, exist_ok=True)
    # In the dtype that they were found in: rounded once more, fewer of them would be numbers that 4 bits can hold.
    (args.out / CONFIG).write_text(json.dumps(config | {"torch_dtype": args.dtype}, indent=1) + "\n")
    stack = engine.hierarchy.stack_of(-1)
    assert isinstance(stack, FusedStack)
    parts = {name: part.contiguous().clone() for name, part in stack.parts.items()}
    save_file(parts, args.out / "model.safetensors", metadata={"format": "pt"})
    engine.tokenizer.save_pretrained(args.out)
    (args.out / "agreement.json").write_text(json.dumps(engine.environment["agreement"]) + "\n")
    print(engine.environment["agreement"])


if __name__ == "__main__":
    main()
