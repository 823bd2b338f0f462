"""What the fields of the record of a merge may be."""

from collections.abc import Mapping
from typing import Any, get_args

from jaxmerge.io.fields import (
    ANY,
    COUNT,
    DIGEST,
    DIGESTS,
    FLAG,
    HUB_ID,
    NUMBER,
    PATH,
    TEXT,
    WHOLE,
    Fields,
    Items,
    Maybe,
    Table,
    Value,
    number,
    one_of,
    whole,
)
from jaxmerge.io.options import HeadPolicy, TaskType
from jaxmerge.refusals import Refusal
from jaxmerge.spec.layerwise import as_given


def numbers_of_tasks(value: Any) -> bool:
    """Whether a value says a number of each input, in all modules or in each."""
    if not isinstance(value, list | dict):
        return False
    try:
        as_given(value, "")
    except (Refusal, TypeError):
        return False
    return True


STATISTICS = "statistics"
ROLE_OPTIONS = {  # of what a merge reads beside the adapters -> option that names it
    STATISTICS: "stats",
    "base": "base",
    "data": "data",
}

_OWN_STEPS = Table(
    Fields({"kind": TEXT, "functions": Items(TEXT, least=1), "sha256": Maybe(DIGEST)}),
    names=Value("names of steps", lambda name: name.isidentifier() and name.isascii()),
)
_FILES = Fields({"path": PATH, "sha256": DIGESTS})
RANK = Value(
    "a whole number of at least 1 or 'auto'",
    lambda value: value == "auto" or COUNT.accepts(value),
)
SHARE = Value("a share in (0, 1]", lambda value: number(value) and 0 < value <= 1)
DENSE = one_of(("error", "truncate", "full"))
TASK_TYPE = one_of(get_args(TaskType))
_NUMBERS = Value("numbers of the inputs", numbers_of_tasks)
_STEPS = Value("a whole number of at least 0", whole(0))
_INPUT = Fields(
    {
        "name": Value("a name", lambda value: bool(value) and TEXT.accepts(value)),
        "path": PATH,
        "base_model": Maybe(TEXT),
        "revision": Maybe(TEXT),
        "weight_file": TEXT,
        "sha256": DIGESTS,
    },
    {"hub": HUB_ID},
)
_SETTINGS = {
    "rank": Maybe(RANK),
    "energy": Maybe(SHARE),
    "ragged": FLAG,
    "dense": DENSE,
    "dtype": one_of(("float32", "float16", "bfloat16")),
    "heads": one_of((*get_args(HeadPolicy), "table")),
}
SETTINGS = tuple(_SETTINGS)  # of saving
_OUTPUT = Fields({**_SETTINGS, "kind": one_of(("adapter", "delta")), "sha256": DIGESTS})
RECORD = Fields(
    {
        "format": Value("1", lambda value: type(value) is int and value == 1),
        "versions": Fields({"jaxmerge": TEXT, "jax": TEXT}),
        "recipe": Table(ANY),
        "read_options": Table(ANY),  # `ReadOptions` checks them
        "inputs": Items(_INPUT, least=1),
        "output": _OUTPUT,
    }
)
_OF_PIPELINE = Fields(
    {"pipeline": TEXT},
    {
        "weights": Maybe(_NUMBERS),
        "densities": Maybe(_NUMBERS),
        "left_out": Items(TEXT),
        "own_steps": _OWN_STEPS,
        "seed": Maybe(WHOLE),
        "files": Table(_FILES, names=one_of(tuple(ROLE_OPTIONS))),
        "sample": Fields(
            optional={
                **{"batch": COUNT, "limit": Maybe(COUNT), "max_length": Maybe(COUNT)},
                "task_type": TASK_TYPE,
            }
        ),
    },
    others=True,
)
_OF_LEARNED = Fields(
    {"learned": TEXT},
    {
        "own_steps": _OWN_STEPS,
        **dict.fromkeys(("unit", "loss", "start", "schedule"), TEXT),
        **dict.fromkeys(("objective", "optimizer"), TEXT),
        **dict.fromkeys(("temperature", "alpha", "logit_scale", "initial"), NUMBER),
        **dict.fromkeys(("shared", "accumulate", "pico"), FLAG),
        "rate": Maybe(NUMBER),
        "preference": Maybe(Items(NUMBER)),
        "steps": _STEPS,
        "batch": COUNT,
        "seed": WHOLE,
        **{"max_length": Maybe(COUNT), "limit": COUNT},
        "task_type": TASK_TYPE,
        "anchors": Items(NUMBER),
        "files": Table(_FILES),
    },
    others=True,
)
_OF_CONVERTED = Fields(
    {"converted": one_of(("peft", "diffusers", "kohya"))},
    {"component": TEXT},
    others=True,
)
RECIPES = {  # how a folder was made, by the entry that says it
    "pipeline": _OF_PIPELINE,
    "learned": _OF_LEARNED,
    "converted": _OF_CONVERTED,
}


def unknown_entries(recipe: Mapping[str, Any], kind: str) -> list[str]:
    """Entries of a recipe that no merge reads."""
    schema = RECIPES[kind]
    return [k for k in recipe if k not in schema.required and k not in schema.optional]
