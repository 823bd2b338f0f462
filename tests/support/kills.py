"""Kills every command that writes at every step of its writing: ``make kills``.

Each run is a process of its own, which ends itself by SIGKILL before its n-th change of
a file or folder, with and without the call that exchanges names; some are killed at
random moments from outside. After each the target must be whole, old or new, once the
next run has mended it. Then `faults.PowerCuts` are tried at every step.

    python tests/support/kills.py [--share 0.1] [--out kills.json]
"""

import argparse
import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=1"
import jax  # noqa: F401  # loaded before the processes part; nothing computes here
import learn_samples
import orbax.checkpoint  # noqa: F401
from cli_samples import everything
from faults import PowerCuts, lay_out, mend_quietly, numbered, watched
from kill_commands import Command, child, commands, ended, run

from jaxmerge import disk
from jaxmerge.cli import app

COPIED = ("convert to PEFT", "inspect --html")  # one thread, nothing left to compute
RANDOM = 60  # copies that are killed at random moments, for each state before


class Tally(NamedTuple):
    steps: int
    kills: int
    finished: int  # runs that ended before they were killed
    old: int
    new: int
    absent: int
    runs_after: int
    power_cuts: int


def without_exchange() -> None:
    disk._renameat2 = lambda *_: False


def content(target: Path) -> dict[str, bytes] | bytes | None:
    if target.is_dir():
        return everything(target)
    return target.read_bytes() if target.exists() else None


def read_back(command: Command) -> dict[str, bytes] | bytes | None:
    """What was written; of a checkpoint, whose files always differ, what it means."""
    if command.name != "convert to orbax":
        return content(command.target)
    back = command.target.parent.parent / "back"
    run(["convert", command.target, "-o", back, "--force"])
    return (back / "adapter_model.safetensors").read_bytes()


def mended(target: Path) -> dict[str, bytes] | bytes | None:
    mend_quietly(target)
    hidden = [n for n in os.listdir(target.parent) if n.startswith(f".{target.name}.")]
    assert not hidden, hidden
    return content(target)


def prepare(command: Command, old: Any) -> None:
    """The state before a run: the old target and nothing beside it."""
    folder = command.target.parent
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if isinstance(old, bytes):
        command.target.write_bytes(old)
    elif old is not None:
        lay_out(old, command.target)


def count_steps(command: Command, old: Any, before: Callable[[], object]) -> int:
    prepare(command, old)
    path = command.target.parent.parent / "count"

    def work() -> None:
        before()
        steps: list[int] = []
        with watched(command.target.parent, numbered(steps.append)):
            try:
                app(list(map(str, command.new)))
            finally:
                path.write_text(str(len(steps)))

    assert ended(child(work)) == 0, command.name
    return int(path.read_text())


def killed_at(command: Command, n: int, before: Callable[[], object]) -> int:
    def work() -> None:
        before()

        def act(here: int) -> None:
            if here == n:
                os.kill(os.getpid(), signal.SIGKILL)

        with watched(command.target.parent, numbered(act)):
            app(list(map(str, command.new)))

    return ended(child(work))


def copies_killed(
    command: Command, was: Any, new: Any, before: Callable[[], object], many: int
) -> Counter[str]:
    """Kills copies of one process that has computed everything and begins to write.

    One copy ends itself before each of ``many`` changes, others are killed at random
    moments. Only for commands whose writing needs no other thread.
    """
    prepare(command, was)
    path, dice = command.target.parent.parent / "found", random.Random(0)
    moments = [(n, 0.0) for n in range(many)]
    moments += [(many, dice.uniform(0.0, 0.05)) for _ in range(RANDOM)]

    def work() -> None:
        before()
        mine, found = -1, Counter()

        def act(here: int) -> None:
            nonlocal mine
            if here == mine:
                os.kill(os.getpid(), signal.SIGKILL)
            if mine >= 0:
                return
            for n, seconds in moments:
                number = os.fork()
                if not number:
                    mine = n
                    signal.alarm(60)
                    if n == 0:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return
                if seconds:
                    time.sleep(seconds)
                    os.kill(number, signal.SIGKILL)
                code, state = ended(number), mended(command.target)
                assert state in (was, new)
                assert code in (0, -signal.SIGKILL)
                how = "new" if state != was else "old" if state else "absent"
                found["finished" if code == 0 else how] += 1
                prepare(command, was)
            path.write_text(json.dumps(found))
            os._exit(0)

        with watched(command.target.parent, numbered(act)):
            app(list(map(str, command.new)))

    assert ended(child(work)) == 0, command.name
    return Counter(json.loads(path.read_text()))


def killed_after(command: Command, seconds: float) -> int:
    number = child(lambda: app(list(map(str, command.new))))
    time.sleep(seconds)
    os.kill(number, signal.SIGKILL)
    return ended(number)


def cut_power(command: Command, old: Any, before: Callable[[], object]) -> int:
    """Tries every state that a power cut leaves at every step; gives their number."""
    prepare(command, old)
    folder, path = command.target.parent, command.target.parent.parent / "count"
    scratch = folder.parent / "scratch"

    def work() -> None:
        before()
        cuts, tried, seen = PowerCuts(folder), itertools.count(), []

        def see(moment: str) -> None:
            for state in cuts.leftovers():
                left = mended(lay_out(state, scratch) / command.target.name)
                shutil.rmtree(scratch)
                next(tried)
                if left != old:
                    seen.append((moment, left))

        begun = command.name != "convert to orbax"  # whose files threads write, before

        def step(kind: str, place: str) -> None:
            nonlocal begun
            begun = begun or kind == "sync"
            if begun:
                cuts.step(kind, place)
                see(f"{kind} {place}")

        with watched(folder, step), contextlib.suppress(SystemExit):
            app(list(map(str, command.new)))
        see("the end")
        new = content(command.target)
        assert new != old
        assert [moment for moment, left in seen if left != new] == []
        assert ("the end", new) in seen
        path.write_text(str(next(tried)))

    assert ended(child(work)) == 0, (command.name, os.environ["KILLS_LOG"])
    return int(path.read_text())


def tried(command: Command, share: float, dice: random.Random) -> Tally:
    """Kills a command in every way, and says what became of its target."""
    prepare(command, None)
    run(command.old)
    old = content(command.target)
    run(command.new)  # compiles
    prepare(command, old)
    begun = time.monotonic()
    run(command.new)
    lasted, new = time.monotonic() - begun, read_back(command)
    assert old is not None
    assert old != new
    found, finished, after, steps, copied = [], 0, 0, 0, Counter()

    def check(code: int, was: Any) -> None:
        nonlocal finished, after
        if code != -signal.SIGKILL:
            assert code == 0, (command.name, code)
            finished += 1
            return
        state = mended(command.target)
        if state != was:
            assert read_back(command) == new, command.name
        found.append("new" if state != was else "old" if state else "absent")
        if command.name == "learn" or len(found) % 8 == 0:
            run(command.new)
            assert read_back(command) == new, command.name
            assert not hidden(command)
            after += 1

    for before, was in itertools.product((lambda: None, without_exchange), (old, None)):
        if was is None and before is without_exchange:
            continue
        many = count_steps(command, was, before)
        steps = max(steps, many)
        if command.name in COPIED:
            copied += copies_killed(command, was, new, before, many)
            continue
        for n in range(many):
            if dice.random() < share:
                prepare(command, was)
                check(killed_at(command, n, before), was)
    for _ in range(int(20 * share)):
        prepare(command, old)
        check(killed_after(command, dice.uniform(0.3, 1.0) * lasted), old)
    cuts = 0
    if command.name != "learn":  # its checkpoints are written by threads
        cuts = sum(cut_power(command, old, b) for b in (int, without_exchange))
    states = Counter(found) + copied
    finished += states.pop("finished", 0)
    return Tally(
        *(steps, states.total(), finished),
        *(states["old"], states["new"], states["absent"]),
        *(after, cuts),
    )


def hidden(command: Command) -> list[str]:
    return [n for n in os.listdir(command.target.parent) if n != command.target.name]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--share", type=float, default=1.0, help="of the steps")
    parser.add_argument("--only", default="", help="name of a command")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kills-") as scratch:
        place = Path(scratch)
        os.environ["JAXMERGE_CACHE"] = str(place / "cache")
        os.environ["KILLS_LOG"] = str(place / "log")
        (place / "outs").mkdir()
        base = place / "bert"
        made = child(lambda: (learn_samples.bert(base / "base"),))
        assert ended(made) == 0
        learn_samples.bert_adapters(base / "in")
        learn_samples.texts(base / "data")
        dice, results = random.Random(0), {}
        try:
            for command in commands(place):
                if options.only in command.name:
                    results[command.name] = tried(command, options.share, dice)
                    print(command.name, results[command.name], flush=True)
        finally:
            log = place / "log"
            if log.exists():
                print(log.read_text()[-4000:], file=sys.stderr)
    total = Tally(*map(sum, zip(*results.values(), strict=True)))
    print("all", total)
    if options.out is not None:
        found = {name: tally._asdict() for name, tally in results.items()}
        options.out.write_text(json.dumps(found | {"all": total._asdict()}, indent=2))


if __name__ == "__main__":
    main()
