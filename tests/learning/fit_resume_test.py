"""Fits that are stopped, killed, spoilt by nan, or given too little."""

import itertools
import signal
import subprocess
import sys
import textwrap
import time

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fit_problem import (
    PARAMS,
    TASKS,
    assert_trees,
    draw,
    make_batches,
    make_losses,
    make_stacks,
    run,
)
from reference import ROOT

import jaxmerge as jm


@pytest.mark.parametrize("steps_before", [4, 8])
def test_resuming_gives_the_same_bits(tmp_path, steps_before):
    preference = jnp.array([0.5, 0.3, 0.2])
    whole = run(preference=preference)
    run(preference=preference, steps=steps_before, checkpoint=tmp_path / "fit")
    resumed = run(preference=preference, checkpoint=tmp_path / "fit")
    assert_trees(whole, resumed)
    finished = run(preference=preference, checkpoint=tmp_path / "fit")
    assert_trees(whole, finished)


def test_a_checkpoint_further_than_the_steps_is_refused(tmp_path):
    run(steps=8, checkpoint=tmp_path)
    with pytest.raises(ValueError, match=r"at step 8, beyond steps=5; ask for 8 or"):
        run(steps=5, checkpoint=tmp_path)
    assert run(steps=8, checkpoint=tmp_path).history.objective.shape == (8,)


@pytest.mark.parametrize("folder", [None, "fit"])
def test_no_step_is_refused(tmp_path, folder):
    with pytest.raises(ValueError, match="steps=0; at least one is needed"):
        run(steps=0, checkpoint=folder and tmp_path / folder)
    assert not any(tmp_path.iterdir())


def test_no_batch_at_all(tmp_path):
    with pytest.raises(ValueError, match="batches end before the first step"):
        run(batches=[], checkpoint=tmp_path / "fit")


KILLED = """
    import sys
    import jax
    jax.config.update("jax_enable_x64", True)
    sys.path.insert(0, sys.argv[2])
    from fit_problem import run
    run(steps=100, steps_per_call=2, checkpoint=sys.argv[1],
        report=lambda progress: print(progress.step, flush=True))
"""


@pytest.mark.thorough
def test_a_killed_fit_goes_on_to_the_same_bits(tmp_path):
    """Killed twice without warning, at a random moment, then finished."""
    here = str(ROOT / "tests" / "support")
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path / "f"), here]
    rng = np.random.default_rng()
    reached = []
    for _ in range(2):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            reached.append(int(process.stdout.readline()))
            time.sleep(rng.uniform(0, 0.3))
            process.send_signal(signal.SIGKILL)
    assert reached[1] > reached[0]
    options = {"steps": 100, "steps_per_call": 2}
    resumed = run(checkpoint=tmp_path / "f", **options)
    assert_trees(run(**options), resumed)


def test_a_report_after_every_call():
    seen = []
    run(steps=10, report=seen.append)
    assert [progress.step for progress in seen] == [4, 8, 10]
    assert seen[-1].history.losses.shape == (2, 3)


def run_spoilt(change, **options):
    losses = make_losses(change=change)
    optimizer, options = optax.sgd(0.1), {"steps": 12, "params": PARAMS} | options
    return jm.fit(
        jm.tara_a(), TASKS, make_stacks(), losses, make_batches(), optimizer, **options
    )


def test_nan_names_step_and_task():
    sizes = [float(jnp.max(b["second"])) for b in itertools.islice(make_batches(), 12)]
    first = next(i for i, size in enumerate(sizes) if size > 2.2)

    def change(task, loss, updates, batch):
        spoils = (jnp.max(batch) > 2.2) & (task == "second")
        return loss / jnp.where(spoils, 0.0, 1.0)

    message = rf"step {first + 1}: the loss of second is not finite"
    with pytest.raises(FloatingPointError, match=message):
        run_spoilt(change)


@pytest.mark.parametrize("preference", [None, jnp.full((2, 3), 1 / 3)])
def test_a_gradient_that_is_nan_names_the_task(preference):
    def change(task, loss, updates, batch):
        if task != "third":
            return loss
        return loss + jnp.sqrt(0 * jnp.sum(updates["out"].b))  # an infinite slope at 0

    member = "" if preference is None else " for preference 0"
    message = f"step 1{member}: the gradient of third"
    with pytest.raises(FloatingPointError, match=message):
        run_spoilt(change, preference=preference)


def test_batches_that_end_early_or_lack_a_task():
    for batches, message in (
        (list(itertools.islice(make_batches(), 5)), "batches end after 5 of 12 steps"),
        (itertools.repeat({"first": draw(0, 4, 5)}), "no 'second' at step 1"),
    ):
        with pytest.raises(ValueError, match=message):
            jm.fit(
                jm.tara_a(),
                TASKS,
                make_stacks(),
                make_losses(),
                batches,
                optax.sgd(0.1),
                steps=12,
                params=PARAMS,
            )
