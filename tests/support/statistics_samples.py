"""Arguments of commands on a tiny base with adapters, data and statistics."""

from learn_samples import TASKS

from jaxmerge import io

LAYER = "bert.encoder.layer.0.attention"
QUERY, OUTPUT = f"{LAYER}.self.query", f"{LAYER}.output.dense"


def folders(place, tasks=TASKS):
    return [place / "in" / task for task in tasks]


def flags(options):
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        yield from [flag] if value is True else [flag, value]


def collect(place, out, *adapters, **options):
    """Arguments of a collection."""
    data = ["--base", place / "base", "--data", place / "data"]
    return ["collect", *adapters, *data, "-o", place / out, *flags(options)]


def merge(place, pipeline, out="out", tasks=TASKS, **options):
    """Arguments of a merge with the statistics."""
    options = {"stats": place / "stats", "heads": "keep"} | options
    given = {name: value for name, value in options.items() if value is not None}
    where = ["-p", pipeline, "-o", place / out, *flags(given)]
    return ["merge", *folders(place, tasks), *where]


def load(place, tasks=TASKS, folder="stats"):
    return io.open_statistics(place / folder).of(tasks).load()
