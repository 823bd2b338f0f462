"""The scale that is found without labels, beside the published one and a fine grid.

    python -m experiments.digits8.tune

Six named methods. Their scale is searched by ``jaxmerge.tune`` on the 200 validation
images of each task, by the divergence from the own adapters, and on a grid of 33 scales
from 0.05 to 5 with the labels of the same images. What is found is scored on the test
images. A line of ``results/tune.jsonl`` for each method, written as it is measured;
given again, the command does what is missing and writes ``results/tune.md``.
"""

import tempfile
from pathlib import Path

import numpy as np
import typer
from safetensors.numpy import save_file

import jaxmerge as jm
from experiments.digits8.data import load_splits
from experiments.digits8.demo import Setting, prepare
from experiments.digits8.model import ADAPTERS, BASE, LOGIT_SCALE
from experiments.digits8.score import accuracies
from experiments.digits8.tasks import TASKS
from experiments.records import Records
from experiments.tables import markdown_table
from jaxmerge.runtime import start_jax
from jaxmerge.spec import PRESETS
from jaxmerge.spec.varied import without_scale

RESULTS = Path(__file__).parent / "results"
METHODS = (
    *("scaled_task_arithmetic", "ties", "knots_ties"),
    *("core_tsv", "iso_c", "iso_cts"),
)
GRID = np.geomspace(0.05, 5, 33)


def write_inputs(folder: Path, setting: Setting) -> tuple[Path, Path]:
    """Validation images without labels, and class vectors, as commands read them."""
    images = load_splits()["validation"]
    for name, task in TASKS.items():
        np.savez(folder / f"{name}.npz", images=task.examples(images)[0])
    heads = setting.base.heads
    vectors = folder / "vectors.safetensors"
    save_file({n: np.asarray(heads[t.head]) for n, t in TASKS.items()}, vectors)
    return folder, vectors


def measure(method: str, setting: Setting, data: Path, vectors: Path) -> dict:
    """Scales, and test accuracies in % of the own adapters."""
    inside, published = without_scale(jm.parse(method))
    tuned = jm.tune(
        [ADAPTERS / name for name in TASKS],
        inside.text,
        base=BASE,
        data=data,
        text_heads=vectors,
        logit_scale=LOGIT_SCALE,
        batch=200,
    )
    _, found = without_scale(jm.parse(tuned.pipeline))
    updates = inside.run(setting.adapters.stacks)

    def scored(part: str, scales: np.ndarray) -> np.ndarray:
        right = accuracies(setting.base.params, updates, scales, setting.exams[part])
        return np.mean(100 * right / setting.own[part], axis=1)

    by_labels = GRID[np.argmax(scored("validation", GRID))]
    chosen = np.array([published, found, by_labels])
    test = scored("test", chosen)
    names = ("published", "tuned", "labels")
    return {
        "scales": dict(zip(names, np.round(chosen, 4).tolist(), strict=True)),
        "test": dict(zip(names, test.tolist(), strict=True)),
        "merges": len(tuned.rows),
        "seconds": round(sum(row.scored.seconds for row in tuned.rows), 1),
    }


def table(records: Records) -> str:
    """A row for each method, and their mean."""
    rows, values = [], []
    for method in METHODS:
        row = records.find(method=method)
        if row is None:
            continue
        scales, test = row["scales"], row["test"]
        values.append(list(test.values()))
        cells = [f"{test[name]:.1f} at {scales[name]:.3g}" for name in scales]
        rows.append([PRESETS[method].method, *cells])
    if rows:
        rows.append(["mean", *(f"{x:.1f}" for x in np.mean(values, axis=0))])
    columns = ("published scale>", "tune, no labels>", "grid, labels>")
    return markdown_table(["method", *columns], rows)


def main() -> None:
    """Measures every method that is not measured yet."""
    start_jax()
    records, setting = Records(RESULTS / "tune.jsonl"), prepare()
    with tempfile.TemporaryDirectory() as place:
        data, vectors = write_inputs(Path(place), setting)
        for method in METHODS:
            if not records.find(method=method):
                row = measure(method, setting, data, vectors)
                records.add(method=method, **row)
                typer.echo(f"{method}: {row}", err=True)
    (RESULTS / "tune.md").write_text(table(records), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
