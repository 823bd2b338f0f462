"""The eight vision tasks of the papers, on CLIP ViT-B/32 or ViT-L/14.

    export JAXMERGE_CLIP=...       a Hugging Face folder of openai/clip-vit-base-patch32
    export JAXMERGE_ADAPTERS=...   a PEFT folder for each task, named as in `TASKS`
    export JAXMERGE_HEADS=...      safetensors: task -> text vectors [classes, d]
    export JAXMERGE_IMAGES=...     <task>/{validation,test}/<class>/<image>
    python -m experiments.run clip_vision8

The adapters are those that KnOTS publishes, for example. Text vectors are CLIP's for
the names of the classes, in the order of the sorted class folders. The features are
CLIP's image embeddings; a head gives cosines, and predictions are taken of 100 times
them, the temperature that CLIP was trained with. TARA-Merging's official code takes
the entropy of the cosines as they are: ``--logit-scale 1 --out raw``.

On a GPU the fits take minutes; nothing of it was run with CLIP's weights here. Expected
from arXiv 2603.26299, mean normalised accuracy with ViT-B/32: task arithmetic 63.8,
KnOTS-TIES 68.0, AdaMerging 70.0, TARA-A 74.0, TARA-B 76.3.
"""

from functools import partial

from experiments.image_folders import read_folders
from experiments.settings import Settings, named_path
from experiments.suite import Suite, Task
from jaxmerge.io import load_peft
from jaxmerge.tasks import load_base, task_heads

TASKS = ("cars", "dtd", "eurosat", "gtsrb", "mnist", "resisc45", "sun397", "svhn")
FOLDERS = {
    "JAXMERGE_CLIP": "a Hugging Face CLIP folder with preprocessor_config.json",
    "JAXMERGE_ADAPTERS": "a folder with a PEFT folder for each task",
    "JAXMERGE_HEADS": "a safetensors file with the text vectors of each task",
    "JAXMERGE_IMAGES": "a folder with <task>/<part>/<class>/<image>",
}
LIMIT = 3000  # images of a part


def load_suite() -> Suite:
    """Reads what the environment variables name; images only when asked.

    Raises:
      ValueError: a variable is not set, or what it names does not fit.
    """
    clip, adapters, heads, images = (named_path(*each) for each in FOLDERS.items())
    base = load_base(clip)
    folders = [adapters / name for name in TASKS]
    vectors = task_heads(base, load_peft(folders, heads="keep"), heads)
    read = partial(read_folders, side=base.config.image_size, limit=LIMIT)
    tasks = (
        Task(name, folder, vectors[name], partial(read, images / name))
        for name, folder in zip(TASKS, folders, strict=True)
    )
    return Suite("clip_vision8", base, tuple(tasks))


def get_config() -> Settings:
    return Settings(
        load=load_suite, validation=500, test=LIMIT, longest_fit=500, logit_scale=100.0
    )
