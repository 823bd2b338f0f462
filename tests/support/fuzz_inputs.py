"""Tiny valid inputs of every reader, and readers that check what they read."""

import contextlib
import json
import random
from pathlib import Path

import io_samples as samples
import numpy as np
import safetensors.numpy

from jaxmerge import io
from jaxmerge.io.opening import open_adapters
from jaxmerge.io.options import ReadOptions
from jaxmerge.io.stored import recorded_inputs
from jaxmerge.io.torch_file import TorchFile
from jaxmerge.jobs import recipe_file as recipes
from jaxmerge.jobs.merge_record import input_paths
from jaxmerge.jobs.merge_record import read_record as read_merge_record
from jaxmerge.jobs.reading import refusing_bad_input
from jaxmerge.models import hub
from jaxmerge.refusals import Refusal
from jaxmerge.spec import parse
from jaxmerge.stats.moments import Moments
from jaxmerge.tasks import heads
from jaxmerge.tasks import images as image_files
from jaxmerge.tasks import texts as text_files

MODULE = "h.0.fc"


def safetensors_adapter(folder: Path) -> None:
    tensors = samples.linear(MODULE, m=3, n=2, r=2) | samples.linear("h.1.fc", m=2, r=2)
    tensors["base_model.model.head.weight"] = samples.random(2, 2)
    samples.write(folder, tensors, r=2, modules_to_save=["head"])


def adapter_config(folder: Path) -> None:
    config = {
        "rank_pattern": {r"h\.(0|1)\.fc": 2, "other": 4},
        "alpha_pattern": {"h.0.fc": 3.0, ".*": 6},
        "use_rslora": True,
        "fan_in_fan_out": False,
        "bias": "none",
        "init_lora_weights": "gaussian",
        "modules_to_save": None,
        "revision": "main",
        "peft_version": "0.18.0",
    }
    samples.write(folder, samples.linear(MODULE, m=3, n=2, r=2), **config)


def torch_archive(folder: Path, *, old: bool = False) -> None:
    import torch

    tensors = samples.linear(MODULE, m=3, n=2, r=2)
    values = {key: torch.from_numpy(value) for key, value in tensors.items()}
    values["base_model.model.head.bias"] = torch.arange(6.0).half()[2:4]
    samples.write(folder, tensors, r=2)
    (folder / samples.SAFE).unlink()
    torch.save(values, folder / samples.BIN, _use_new_zipfile_serialization=not old)


def torch_stream(folder: Path) -> None:
    torch_archive(folder, old=True)


def read_adapter(folder: Path) -> None:
    """Everything is finite, and what numpy computes from the files by hand."""
    adapters = io.load_peft([folder], heads="keep", allow_zero=True)
    for stack in adapters.stacks.values():
        assert np.isfinite(stack.a).all()
        assert np.isfinite(stack.b).all()
    for name, value in adapters.heads[0].items():
        assert isinstance(name, str)
        if np.issubdtype(value.dtype, np.floating):
            assert np.isfinite(value).all()
    _compare(adapters, folder)


def _compare(adapters: io.Adapters, folder: Path) -> None:
    stack = adapters.stacks.get(MODULE)
    config = json.loads((folder / samples.CONFIG).read_text("utf-8-sig"))
    plain = not config.get("rank_pattern") and not config.get("alpha_pattern")
    if stack is None or not plain or config["peft_type"] != "LORA":
        return
    if (folder / samples.SAFE).exists():
        tensors = safetensors.numpy.load_file(folder / samples.SAFE)
    else:
        file = TorchFile(folder / samples.BIN)
        tensors = {key: file.read(key) for key in file.infos}
    start = f"base_model.model.{MODULE}.lora_"
    if f"{start}A.weight" not in tensors or f"{start}B.weight" not in tensors:
        return  # such as a file whose tensors have no prefix
    a, b = tensors[f"{start}A.weight"], tensors[f"{start}B.weight"]
    if a.ndim != 2:
        return
    scale = config["lora_alpha"] / (len(a) ** (0.5 if config.get("use_rslora") else 1))
    expected = samples.product(b, a, scale)
    samples.close(samples.update(stack), expected, tol=1e-5)


def variant(folder: Path) -> None:
    tensors = samples.linear(MODULE, m=3, n=2, r=2)
    plain = {key.removesuffix(".weight"): value for key, value in tensors.items()}
    plain[f"base_model.model.{MODULE}.lora_E"] = samples.random(2, 1)
    config = {"peft_type": "ADALORA", "init_r": 3, "lora_alpha": 6}
    ranks = {f"base_model.model.{MODULE}.lora_E": [True, False, True]}
    samples.write(folder / "adalora", plain, rank_pattern=ranks, **config)
    start = f"base_model.model.{MODULE}.vera_lambda_"
    vera = {
        "base_model.vera_A": samples.random(2, 4),
        "base_model.vera_B": samples.random(4, 2),
        f"{start}b": samples.random(3),
        f"{start}d": samples.random(2),
    }
    config = {"peft_type": "VERA", "r": 2, "save_projection": True}
    samples.write(folder / "vera", vera, raw_config=config)


def read_variant(folder: Path) -> None:
    refusal = None
    for name in ("adalora", "vera"):
        try:
            found = io.load_peft([folder / name], heads="keep", allow_zero=True)
        except Refusal as error:
            refusal = error
            continue
        for stack in found.stacks.values():
            assert np.isfinite(samples.update(stack)).all()
    if refusal:
        raise refusal


def old_layout(folder: Path) -> None:
    start = "down_blocks.0.attn.processor.to_q_lora."
    tensors = {f"{start}down.weight": samples.random(2, 4)}
    tensors[f"{start}up.weight"] = samples.random(3, 2)
    safetensors.numpy.save_file(tensors, folder / "pytorch_lora_weights.safetensors")


def read_old_layout(folder: Path) -> None:
    options = ReadOptions(layout="diffusers", assume_alpha="rank", heads="keep")
    (opened,) = open_adapters([folder], options)
    assert opened.specs


def image_file(folder: Path) -> None:
    module = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    tensors = {f"{module}.lora_down.weight": samples.random(2, 4)}
    tensors[f"{module}.lora_up.weight"] = samples.random(3, 2)
    tensors[f"{module}.alpha"] = np.array(1, np.float32)
    safetensors.numpy.save_file(tensors, folder / "style.safetensors")


def read_image_file(folder: Path) -> None:
    adapters = io.load_peft(
        [folder / "style.safetensors"], heads="keep", allow_zero=True
    )
    assert all(np.isfinite(stack.b).all() for stack in adapters.stacks.values())


def jax_tree(folder: Path) -> None:
    import orbax.checkpoint as ocp

    tree = {"fc": {"lora_a": samples.random(4, 2), "lora_b": samples.random(2, 3)}}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "tree", tree)


def read_jax_tree(folder: Path) -> None:
    options = ReadOptions(lora_alpha="rank", heads="keep")
    (opened,) = open_adapters([folder / "tree"], options)
    assert opened.specs


def recipe_file(folder: Path) -> None:
    (folder / "recipe.yaml").write_text(
        "adapters:\n  - {adapter: a, parameters: {weight: [0.2, 0.8]}}\n"
        "  - adapter: b\n    parameters:\n      weight: [{filter: q, value: 1}, "
        "{value: 2}]\npipeline: tsv_m|scale(0.5)\nseed: 1\nragged: true\nout: c\n"
    )


def read_recipe_file(folder: Path) -> None:
    found = recipes.read_recipe(folder / "recipe.yaml")
    assert found.folders


def merge_record(folder: Path) -> None:
    from jaxmerge import merge

    inputs = []
    for name in ("a", "b"):
        inputs.append(samples.write(folder / name, samples.linear(MODULE, r=4)))
    merge(inputs, "concat", out=folder / "out")
    for name in ("README.md", samples.SAFE, samples.CONFIG):
        (folder / "out" / name).unlink()
    record = folder / "out" / "jaxmerge.json"
    record.write_text(record.read_text().replace(str(folder), "."))


def read_record(folder: Path) -> None:
    with contextlib.chdir(folder):
        _, names = recorded_inputs(Path("out"))
        assert all(isinstance(name, str) for name in names)
        record = read_merge_record("out")
        assert input_paths(Path("out"), record, None)


def orbax_folder(folder: Path) -> None:
    source = samples.write(folder / "in", samples.linear(MODULE, m=3, n=2, r=4))
    io.save_orbax(folder / "out", io.load_peft([source]))


def read_orbax(folder: Path) -> None:
    adapters = io.load_orbax(folder / "out")
    stacks = adapters if isinstance(adapters, dict) else adapters.stacks
    for stack in stacks.values():
        for values in (stack.a, stack.b):
            assert np.isfinite(values).all()


def statistics_folder(folder: Path) -> None:
    values = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
    moments = Moments(
        count=np.float32(5), mean=values.mean(0), gram=values.T @ values / 5
    )
    tasks = {"cars": {MODULE: moments}, "dtd": {MODULE: moments}}
    io.save_statistics(folder / "out", tasks, measured={"base_model": "org/base"})


def read_statistics(folder: Path) -> None:
    opened = io.open_statistics(folder / "out")
    opened.check({MODULE: 2}, ["org/base"])
    opened.check_files()
    for value in opened.load().values():
        assert all(np.isfinite(array).all() for array in value)


def recipe(folder: Path) -> None:
    texts = (
        "ties(density=0.2)|core|pico|scale(0.6)",
        "elect|dare(density=0.5)|core|truncate(rank=4)",
        "tara_b(initial=0.3)|calibrate|svc",
        "total|full",
    )
    dice = random.Random(0)
    (folder / "recipe.txt").write_text(dice.choice(texts))
    for place, text in enumerate(texts):
        (folder / f"{place}.txt").write_text(text)


def read_recipe(folder: Path) -> None:
    refusal = None
    for path in sorted(folder.glob("*.txt")):
        try:
            pipeline = parse(path.read_bytes().decode("utf-8", "surrogateescape"))
        except Refusal as error:
            refusal = error
            continue
        assert parse(pipeline.text).text == pipeline.text
    if refusal:
        raise refusal


def texts(folder: Path) -> None:
    rows = [{"premise": f"a {i}", "hypothesis": "b", "label": i % 2} for i in range(3)]
    text = "\n".join(json.dumps(row) for row in rows)
    (folder / "cars.jsonl").write_text(text + "\n")


def read_texts(folder: Path) -> None:
    from jaxmerge.tasks import labels

    path = folder / "cars.jsonl"
    rows = text_files.read_texts(path)
    assert all(isinstance(text, str) for row in rows for text in row)
    found = labels._of_texts(path, len(rows), 2)
    assert found is None or set(found.tolist()) <= {0, 1}


def images(folder: Path) -> None:
    pixels = np.arange(2 * 2 * 2 * 3, dtype=np.uint8).reshape(2, 2, 2, 3)
    np.savez(folder / "cars.npz", images=pixels, labels=np.array([0, 1]))


def read_images(folder: Path) -> None:
    from jaxmerge.tasks import labels

    path = folder / "cars.npz"
    found = image_files.read_images(path, size=2, channels=3)
    assert np.isfinite(found).all()
    known = labels._of_images(path, len(found), 2)
    assert known is None or set(known.tolist()) <= {0, 1}


def vectors(folder: Path) -> None:
    safetensors.numpy.save_file(
        {"cars": samples.random(3, 2), "dtd": samples.random(2, 2)},
        folder / "vectors.safetensors",
    )


def read_vectors(folder: Path) -> None:
    found = heads.text_heads(folder / "vectors.safetensors", ("cars", "dtd"))
    assert all(np.isfinite(value).all() for value in found.values())


def base_folder(folder: Path) -> None:
    hub.write_folder(folder, {"model_type": "x"}, {"fc.weight": samples.random(2, 2)})


def read_base(folder: Path) -> None:
    with refusing_bad_input():
        assert hub.read_tensors(folder)
