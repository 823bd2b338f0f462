"""The six inference tasks of the papers, on Llama-3-8B with classification heads.

    export JAXMERGE_LLAMA=...      a Hugging Face folder of Meta-Llama-3-8B
    export JAXMERGE_ADAPTERS=...   a PEFT folder for each task, named as in `TASKS`
    export JAXMERGE_TEXTS=...      <task>/{validation,test}.jsonl.gz
    python -m experiments.run llama_nli6

The adapters are those that KnOTS publishes, with their heads ``score``; each line of
the texts has ``text_a``, ``text_b`` and ``label``. The weights stay in bf16; needs a
GPU of 40 GB or more. Nothing of it was run with Llama's weights here. Expected from
arXiv 2603.26299, mean normalised accuracy: task arithmetic 74.6, KnOTS-TIES 75.2,
AdaMerging 78.7, TARA-A 79.7, TARA-B 80.3.
"""

from functools import partial

from tokenizers import Tokenizer

from experiments.settings import Settings, named_path
from experiments.suite import Suite, Task
from experiments.text_pairs import crop, lengths, read_pairs, visible
from jaxmerge.io import load_peft
from jaxmerge.models import head_from_hub, head_logits, llama_apply, load_llama

TASKS = ("mnli", "qnli", "snli", "rte", "sick", "scitail")
FOLDERS = {
    "JAXMERGE_LLAMA": "a Hugging Face Llama folder with tokenizer.json",
    "JAXMERGE_ADAPTERS": "a folder with a PEFT folder for each task",
    "JAXMERGE_TEXTS": "a folder with <task>/{validation,test}.jsonl.gz",
}
LENGTH = 256  # tokens of a pair


def load_suite() -> Suite:
    """Reads what the environment variables name; texts only when asked.

    Raises:
      ValueError: a variable is not set, or what it names does not fit.
    """
    llama, adapters, texts = (named_path(*each) for each in FOLDERS.items())
    config, params = load_llama(llama)
    tokenizer = Tokenizer.from_file(str(llama / "tokenizer.json"))
    tokenizer.enable_truncation(LENGTH, strategy="longest_first")
    tokenizer.enable_padding(length=LENGTH, pad_id=config.pad_token_id or 0)
    folders = [adapters / name for name in TASKS]
    heads = load_peft(folders, heads="keep").heads
    tasks = (
        Task(
            name,
            folder,
            head_from_hub(tensors, "score"),
            partial(read_pairs, texts / name, tokenizer=tokenizer, token_types=False),
        )
        for name, folder, tensors in zip(TASKS, folders, heads, strict=True)
    )
    return Suite(
        name="llama_nli6",
        params=params,
        apply=llama_apply(config),
        logits=head_logits,
        tasks=tuple(tasks),
        lengths=lengths,
        crop=crop,
        mask=visible,
    )


def get_config() -> Settings:
    return Settings(
        load=load_suite, validation=500, test=2000, batch=16, longest_fit=500
    )
