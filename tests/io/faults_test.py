"""Small inputs on which versions failed in the field: each behaves as its line says.

The inputs are reference material, so these tests are skipped without it. A small twin
of every input stands with the other tests of its kind.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cli_samples as cli
import ml_dtypes
import numpy as np
import pytest

PAIR = "merge {{in}}/{} {{in}}/{} --pipeline concat --out {{out}}"
MERGE = PAIR.format("a", "b")
PLAN = "plan {in}"
VERIFY = "verify {in}"


def without_prefix(key: str) -> str:
    return key.removeprefix("base_model.model.")


def without_wrapper(key: str) -> str:
    return key.partition("base_model.model.")[2]


class Refused(NamedTuple):
    """A command that must end with exit code 2, one or two lines, and no output.

    Attributes:
      message: pattern of what it says, searched for in its message.
      command: the command line; ``{in}`` is the folder of the fault, ``{out}`` a folder
        that does not exist.
    """

    message: str
    command: str = MERGE


class Summed(NamedTuple):
    """A merge that must be the sum of its inputs.

    Attributes:
      says: pattern of what the command says.
      name: from a key without its factor to the name of the module.
      command: the command line, as in `Refused`.
      inputs: folders of the adapters, below the folder of the fault.
    """

    says: str = ""
    name: Callable[[str], str] = without_prefix
    command: str = MERGE
    inputs: tuple[str, ...] = ("a", "b")


# one line for each input, or several under "<folder>: <case>"
FAULTS: dict[str, Refused | Summed] = {
    "01-vl-infix": Refused(
        r"name one module in two ways.* pass --strip-prefix model\.language_model\. "
        r"--add-prefix model\. or --strip-prefix model\. --add-prefix model\.language",
        PAIR.format("text", "vlm"),
    ),
    "01-vl-infix: plan": Refused("in two ways", "plan -q {in}/text {in}/vlm"),
    "01-vl-infix: inspect": Refused("in two ways", "inspect {in}/text {in}/vlm"),
    "01-vl-infix: mended": Summed(
        command=f"{PAIR.format('vlm', 'text')} --strip-prefix model.language_model. "
        "--add-prefix model.",
        name=lambda key: without_prefix(key).replace(".language_model.", "."),
        inputs=("text", "vlm"),
    ),
    "01-vl-infix: mended the other way": Summed(
        command=f"{PAIR.format('text', 'vlm')} --strip-prefix model. "
        "--add-prefix model.language_model.",
        name=lambda key: re.sub(
            r"model\.(language_model\.)?layers",
            "model.language_model.layers",
            without_prefix(key),
        ),
        inputs=("text", "vlm"),
    ),
    "04-fused-split": Refused(
        r"'.*gate_up_proj' is a fused layer, of which '.*gate_proj' is a part",
        PAIR.format("hf", "unsloth"),
    ),
    "05-head-vs-lora": Refused(
        r"'lm_head': .*/a updates it by LoRA, .*/b saves it whole.* replaces it",
        f"{PAIR.format('b', 'a')} --heads first",
    ),
    "05-head-vs-lora: keep": Refused(
        r"'lm_head': .* replaces it", f"{MERGE} --heads keep"
    ),
    "06-zero3-empty-head": Refused(
        r"a/adapter_model.safetensors: 'lm_head.weight' is empty: .* not gathered",
        f"{MERGE} --heads first",
    ),
    "07-seqcls-wrapper-keys": Refused(
        r"'classifier' is saved whole and targeted by LoRA at once.*modules_to_save"
    ),
    "08-orig-mod": Summed(
        r"note: .*/a: took wrappers off .*'_orig_mod' of torch.compile",
        name=without_wrapper,
    ),
    "10-ddp-module": Summed(
        r"note: .*/b: took wrappers off .*'module' of data parallel training",
        name=without_wrapper,
    ),
    "32-moe-no-target-parameters": Refused(
        r"'experts': it holds fused experts \(here rank 6 = r 2 times 3 experts",
        "merge {in}/a --pipeline concat --out {out}",
    ),
    "dos_bigint_shape": Refused("too many digits", PLAN),
    "dos_bytearray8": Refused("no tensor file has", PLAN),
    "dos_patterns": Refused("alpha_pattern key .* is too long", PLAN),
    "orbax_ranks_2": Refused(
        r"field modules\.h\.0\.q: ranks \[2\]", "convert {in} --out {out}"
    ),
    "tiny_1e-20": Summed(),
    "tiny_1e-20: core space": Summed(command=MERGE.replace("concat", "total|core")),
    "verify_record_deep_json": Refused(r"jaxmerge\.json: not valid JSON", VERIFY),
    "verify_record_read_options_unknown": Refused(r"field read_options\.zzz", VERIFY),
    "verify_record_seed_text": Refused(r"field recipe\.seed: .* found 'x'", VERIFY),
    "12-new-embeddings": Summed("left out 'new_embeddings.safetensors'"),
    "17-fp8": Summed(),
    "18-model-config-keys": Refused("_name_or_path.*vocab_size.*transformers"),
    "20-mlx": Refused("MLX.*transposed.*r = 4 and lora_alpha = 80"),
    "22-r-float": Summed(),
    "23-zero3-empty-file": Refused("ZeRO-3.*not gathered"),
    "26-tied-weights-base-copy": Summed("left out 'lm_head.base_layer.weight'"),
    "28-subfolder": Refused("/run1/default", "plan {in}/run1 {in}/run2"),
    "29-sharded": Summed(),
    "31-vera-message": Refused("--vera-input q_proj=SIZE --vera-input v_proj=SIZE"),
    "f64_lost_module": Refused("h.1.q.*float64"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_fault_of_the_field(shared, tmp_path, case):
    folder = shared / "faults" / case.partition(":")[0]
    if not folder.exists():
        pytest.skip(f"{folder} is not there")
    fault, out = FAULTS[case], tmp_path / "out"
    places = {"in": folder, "out": out}
    arguments = [word.format(**places) for word in fault.command.split()]
    if isinstance(fault, Refused):
        said = cli.refuse(*arguments)
        assert re.search(fault.message, said), said
        assert list(tmp_path.iterdir()) == []
        return
    said = cli.succeed(*arguments)
    assert re.search(fault.says, said), said
    total: dict[str, np.ndarray] = {}
    for name in fault.inputs:
        for module, update in raw_updates(folder / name, fault.name).items():
            total[module] = total.get(module, 0) + update
    cli.close(raw_updates(out), total)


def raw_updates(
    folder: Path, name: Callable[[str], str] = without_prefix
) -> dict[str, np.ndarray]:
    """module -> update of a LoRA folder of one rank, read without jaxmerge."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = {
        key: value
        for file in folder.glob("*.safetensors")
        for key, value in raw_tensors(file).items()
    }
    scale = float(config["lora_alpha"]) / float(config["r"])
    ends = [".lora_A.weight", ".lora_B.weight"]
    keys = [key.removesuffix(ends[0]) for key in tensors if key.endswith(ends[0])]
    return {
        name(key): scale * tensors[key + ends[1]] @ tensors[key + ends[0]]
        for key in keys
    }


DTYPES = {"F32": np.float32, "F64": np.float64, "F8_E4M3": ml_dtypes.float8_e4m3fn}


def raw_tensors(file: Path) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file in float64."""
    data = file.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    tensors = {}
    for key, entry in header.items():
        begin, end = (start + offset for offset in entry["data_offsets"])
        flat = np.frombuffer(data[begin:end], DTYPES[entry["dtype"]])
        tensors[key] = flat.reshape(entry["shape"]).astype(np.float64)
    return tensors
