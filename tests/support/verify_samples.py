"""Merges that are changed, and what ``jaxmerge verify`` says of them."""

import json

import safetensors.numpy
from cli_samples import jaxmerge, succeed, three

WEIGHTS = "adapter_model.safetensors"
Q_B = "base_model.model.h.0.q.lora_B.weight"
Q_A = "base_model.model.h.0.q.lora_A.weight"


def merged(tmp_path, *options, **tensors):
    out = tmp_path / "out"
    folders = three(tmp_path / "in", **tensors)
    options = options or ("-p", "elect|trim(density=0.5)|core|scale(0.3)")
    succeed("merge", *folders, "-o", out, *options)
    return out


def rewrite(path, change):
    """Changes the tensors of a file in place."""
    tensors = safetensors.numpy.load_file(path)
    change(tensors)
    safetensors.numpy.save_file(tensors, path, metadata={"format": "pt"})


def failed(*arguments):
    """Verifies something that must fail; gives the text and the document."""
    said = jaxmerge("verify", *arguments)
    found = jaxmerge("verify", *arguments, "--json")
    assert said.exit_code == found.exit_code == 1, said.stderr
    assert said.stderr == found.stderr
    assert said.stderr.startswith("error: ")
    assert "not verified" in said.stderr
    assert jaxmerge("verify", *arguments, "--quiet").stdout == ""
    report = json.loads(found.stdout)
    assert report["ok"] is False
    assert "NOT verified" in said.stdout
    return said.stdout, report
