"""The dtypes of weights: how many bits they take, what files call them, and which is the fastest."""

from hispec.machine import has_bfloat16, processor_flags

FLOATS = {"float64": 64, "float32": 32, "bfloat16": 16, "float16": 16}
"""Bits of the dtypes that weights are computed with."""
PER_WEIGHT = {"4bit": 4.5, "8bit": 8.0}
"""Bits of a quantized weight: NF4 adds a float32 for every 64 of them (QLoRA, arXiv 2305.14314, section 2); the
float32 that LLM.int8() keeps for every row (arXiv 2208.07339) is not worth counting."""
GROUP = 32
"""Inputs that share a scale in the fused stack's 4 bits. Larger groups are no faster, and agree with the full weights less
often."""
MANY = 48 * 32 * 1024
"""A number of outputs that every kernel holds without padding."""
FRESH, PAGE = 32 << 20, 4096
"""The bytes from which memory surely comes fresh from the system (glibc's largest threshold), and those of its pages."""
STORED = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""Dtypes of plain numbers, by what safetensors calls them."""
BFLOAT16_FROM = 512
"""Hidden size from which bfloat16 is the faster on processors that have it; see docs/performance.md."""


def fastest_dtype(own: str | None, hidden: int, device: str) -> str | None:
    """Return the default dtype of computation for a checkpoint: its own, or a faster one.

    Args:
        own: the checkpoint's dtype, None where it does not say.
        hidden: its hidden size.
        device: kind of device.
    """
    fast = device == "cpu" and own == "float32" and hidden >= BFLOAT16_FROM and has_bfloat16()
    return "bfloat16" if fast else own


def heads_in_8_bits(device: str) -> bool:
    """Return whether copies have heads of their own, in 8 bits whatever their layers have; elsewhere they read the target's.

    Where the vocabulary is large, a 4-bit head costs more agreement than all 4-bit layers do. An 8-bit one is worth its
    memory where integer products are fast and exact, which takes VNNI; see docs/performance.md.

    Args:
        device: the kind of device, or its name.
    """
    return device == "cpu" and "avx512_vnni" in processor_flags()


def packed_int8(inputs: int, outputs: int) -> int:
    """Return the bytes of an 8-bit matrix as fbgemm packs it on this processor: in blocks, and 16 bytes for each output.

    For each output there are two scales, a zero point and a sum of weights. The padding of a large matrix is left out, as
    its pages come fresh from the system and are never touched.
    """
    flags = processor_flags()
    if "avx512_vnni" in flags:
        rows, columns = 512, 48
    elif "avx512bw" in flags:
        rows, columns = 256, 32
    else:
        rows, columns = (512, 8) if "avx2" in flags else (1, 1)
    block, strips = rows * columns, -(-outputs // columns)
    strip = -(-inputs // rows) * block
    if strip * strips >= FRESH:
        strip = inputs // rows * block + -(-(inputs % rows) * columns // PAGE) * PAGE
    return strip * strips + 16 * outputs


def packed_float16(inputs: int, outputs: int) -> int:
    """Return the bytes of a matrix as fbgemm packs it in float16: in blocks, and a scale for each output."""
    rows, columns = 512, 16
    return 2 * (-(-inputs // rows) * rows) * (-(-outputs // columns) * columns) + 4 * outputs


def bits_per_weight(quantization: str, inputs: int, device: str = "cpu", outputs: int | None = None) -> float:
    """Return the bits of memory that a weight takes, with its share of scales and zero points and of padding.

    Args:
        quantization: a value of `--quantization` except `none`.
        inputs: the number of inputs of the matrix.
        device: the device of the matrix; on a CPU, 8-bit matrices are padded.
        outputs: the number of outputs of the matrix; by default so many that their padding does not count.
    """
    match quantization:
        case "int8" if device == "cpu":
            outputs = outputs or MANY
            return 8 * packed_int8(inputs, outputs) / (inputs * outputs)
        case "int8":
            return 8 + 32 / inputs
        case "int4":  # a scale and a zero point of 16 bits each, for whole groups
            return (4 + 32 / GROUP) * (-(-inputs // GROUP) * GROUP) / inputs
        case _:
            return PER_WEIGHT[quantization]
