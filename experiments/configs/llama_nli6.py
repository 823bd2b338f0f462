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

from experiments.lora import Lora
from experiments.settings import Settings, named_path
from experiments.suite import Suite
from experiments.text_pairs import load_pairs

TASKS = ("mnli", "qnli", "snli", "rte", "sick", "scitail")
FOLDERS = {
    "JAXMERGE_LLAMA": "a Hugging Face Llama folder with tokenizer.json",
    "JAXMERGE_ADAPTERS": "a folder with a PEFT folder for each task",
    "JAXMERGE_TEXTS": "a folder with <task>/{validation,test}.jsonl.gz",
}
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
LENGTH = 256  # tokens of a pair


def load_suite() -> Suite:
    """Reads what the environment variables name; texts only when asked.

    Raises:
      ValueError: a variable is not set, or what it names does not fit.
    """
    llama, adapters, texts = (named_path(*each) for each in FOLDERS.items())
    folders = {task: adapters / task for task in TASKS}
    return load_pairs("llama_nli6", llama, folders, texts, length=LENGTH)


def get_config() -> Settings:
    return Settings(
        load=load_suite,
        validation=500,
        test=2000,
        batch=16,
        longest_fit=500,
        reference=Lora(rank=16, alpha=32, targets=TARGETS),
    )
