"""Makes the weights of this folder with the libraries that quantise them.

Needs bitsandbytes 0.50.2, and the sources of autoawq 0.2.9 and auto-gptq 0.7.1 unpacked
beside each other (``python make.py SOURCES``), of which single files are loaded. Each
file holds a layer as its library saves it, as the module ``fc``, and in ``expected``
the weight [m, n] that the library itself makes of it.
"""

import importlib.util
import json
import sys
from pathlib import Path

import bitsandbytes as bnb
import torch
from bitsandbytes.backends.default.ops import _dequantize_4bit_compute
from safetensors.torch import save_file

HERE, SOURCES = Path(__file__).parent, Path(sys.argv[1])


def loaded(path):
    """A module of a file, without the package around it."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def save(name, tensors, expected, **config):
    both = {f"fc.{key}": value.contiguous() for key, value in tensors.items()}
    save_file(
        {**both, "expected": expected.contiguous()},
        HERE / f"{name}.safetensors",
        metadata={"quantization_config": json.dumps(config)},
    )


def four_bit(name, shape, dtype, kind, block, *, nested=False, storage=torch.uint8):
    weight = torch.randn(shape, dtype=torch.float32).to(dtype)
    packed, state = bnb.functional.quantize_4bit(
        weight,
        blocksize=block,
        compress_statistics=nested,
        quant_type=kind,
        quant_storage=storage,
    )
    parts = {f"weight.{k}": v for k, v in state.as_dict(packed=True).items()}
    if nested:
        blocks = bnb.functional.dequantize_blockwise(state.absmax, state.state2)
        state.absmax = blocks + state.offset
    # not its kernel for CPUs, which takes blocks that go on in the next row for others
    words = packed.view(torch.uint8).reshape(-1)
    scales = (state.absmax, state.code, block)
    expected = _dequantize_4bit_compute(words, *scales, shape, dtype)
    config = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    save(name, {"weight": packed, **parts}, expected, **config)


def eight_bit(name, shape):
    numbers, scales, _ = bnb.functional.int8_vectorwise_quant(torch.randn(shape).half())
    expected = bnb.functional.int8_vectorwise_dequant(numbers, scales)
    layout = torch.tensor(0, dtype=torch.uint8)
    config = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    parts = {"weight": numbers, "SCB": scales, "weight_format": layout}
    save(name, parts, expected, **config)


def words(shape):
    return torch.randint(-(2**31), 2**31, shape, dtype=torch.int64).to(torch.int32)


def awq(name, inputs, outputs, group):
    packing = loaded(SOURCES / "autoawq-0.2.9/awq/utils/packing_utils.py")
    parts = {
        "qweight": words((inputs, outputs // 8)),
        "qzeros": words((inputs // group, outputs // 8)),
        "scales": torch.rand(inputs // group, outputs).half() / 16,
    }
    expected = packing.dequantize_gemm(**parts, bits=4, group_size=group).T
    config = {"bits": 4, "group_size": group, "zero_point": True, "version": "gemm"}
    save(name, parts, expected, quant_method="awq", **config)


def gptq(name, inputs, outputs, bits, group, *, ordered=False):
    kernel = loaded(SOURCES / "auto_gptq/nn_modules/qlinear/qlinear_cuda.py")
    layer = kernel.QuantLinear(bits, group, inputs, outputs, bias=False)
    linear = torch.nn.Linear(inputs, outputs, bias=False).half()
    groups = -(-inputs // group)
    index = torch.arange(inputs, dtype=torch.int32) // group
    if ordered:
        index = index[torch.randperm(inputs)]
    weight, scales, zeros = linear.weight.data.float(), [], []
    for number in range(groups):
        part = weight[:, index == number]
        low, high = part.min(1).values, part.max(1).values
        scales.append(((high - low) / (2**bits - 1)).half().float())
        zeros.append(torch.clamp(torch.round(-low / scales[-1]), 1, 2**bits - 1))
    grid = (torch.stack(found, 1).half() for found in (scales, zeros))
    layer.pack(linear, *grid, index)
    expected = layer(torch.eye(inputs).half()).T
    parts = {k: getattr(layer, k) for k in ("qweight", "qzeros", "scales", "g_idx")}
    config = {"bits": bits, "group_size": group, "desc_act": ordered, "sym": False}
    save(name, parts, expected, quant_method="gptq", **config)


torch.manual_seed(0)
with torch.no_grad():
    four_bit("nf4", (7, 37), torch.float32, "nf4", 64)
    four_bit("nf4_nested", (176, 96), torch.bfloat16, "nf4", 64, nested=True)
    four_bit("fp4", (9, 20), torch.float16, "fp4", 64, storage=torch.bfloat16)
    eight_bit("int8", (9, 16))
    awq("awq", 64, 24, 32)
    gptq("gptq_4", 64, 32, 4, 16, ordered=True)
    gptq("gptq_8", 32, 32, 8, 32)
    gptq("gptq_2", 32, 32, 2, 16)
