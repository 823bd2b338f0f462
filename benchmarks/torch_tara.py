"""A step of TARA-A in torch with PEFT: ``python -m benchmarks.torch_tara COUNT``.

The adapters are concatenated into one of rank K, as PEFT's ``combination_type="cat"``
does; a hook multiplies what lora_A gives by phi. Prints seconds per step as JSON.
"""

import json
import sys

from benchmarks.problems import clock

TASKS, RANK, BATCH, LENGTH, CLASSES = 6, 16, 16, 64, 3
SIZES = {
    "vocab_size": 30522,
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
    "max_position_embeddings": 512,
}


def targets() -> dict[str, tuple[int, int]]:
    """Linear layer -> (outputs, inputs)."""
    width, inner = SIZES["hidden_size"], SIZES["intermediate_size"]
    parts = {
        "attention.self.query": (width, width),
        "attention.self.key": (width, width),
        "attention.self.value": (width, width),
        "attention.output.dense": (width, width),
        "intermediate.dense": (inner, width),
        "output.dense": (width, inner),
    }
    return {
        f"bert.encoder.layer.{layer}.{part}": shape
        for layer in range(SIZES["num_hidden_layers"])
        for part, shape in parts.items()
    }


def time_steps(count: int) -> list[float]:
    """Seconds of each of ``count`` steps, after one that is not counted."""
    import peft
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.BertConfig(**SIZES, num_labels=CLASSES)
    base = transformers.BertForSequenceClassification(config)
    rank = TASKS * RANK
    lora = peft.LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=list(targets()),
        init_lora_weights=False,
    )
    model = peft.get_peft_model(base, lora).eval()
    model.requires_grad_(False)
    phis = []
    for module in model.modules():
        if isinstance(module, peft.tuners.lora.Linear):
            phi = torch.full((rank,), 0.4, requires_grad=True)
            phis.append(phi)
            module.lora_A["default"].register_forward_hook(
                lambda _module, _inputs, output, phi=phi: output * phi
            )
    heads = [
        torch.nn.Linear(SIZES["hidden_size"], CLASSES).requires_grad_(False)
        for _ in range(TASKS)
    ]
    ids = torch.randint(5, SIZES["vocab_size"], (TASKS, BATCH, LENGTH))
    optimizer = torch.optim.AdamW(phis, lr=1e-3)
    encoder = model.base_model.model.bert

    def step():
        optimizer.zero_grad()
        pooled = encoder(ids.flatten(0, 1)).pooler_output.unflatten(0, (TASKS, BATCH))
        values = []
        for head, features in zip(heads, pooled, strict=True):
            p = torch.softmax(head(features), -1)
            values.append(-(p * torch.log(p + 1e-10)).sum(-1).mean())
        torch.logsumexp(torch.stack(values) / TASKS, 0).backward()
        optimizer.step()

    step()
    return clock(step, repeats=count)


if __name__ == "__main__":
    print(json.dumps(time_steps(int(sys.argv[1]))))
