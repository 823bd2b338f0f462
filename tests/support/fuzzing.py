"""Corrupted inputs for every reader, the same ones for the same seed.

    make fuzz COUNT=100000 FIRST=0

An input is a tiny valid one, changed by bytes or by structure. A reader either gives
a finite, right result or refuses; anything else is a finding, whose number repeats it:
``make fuzz FIRST=<number> COUNT=1``. A run that was stopped goes on in the same way.
"""

import argparse
import random
import resource
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import fuzz_inputs as inputs
from cli_samples import everything
from faults import lay_out
from fuzz_changes import change

from jaxmerge.refusals import Refusal
from jaxmerge.untrusted.text import is_plain

SECONDS = 10.0  # of processor time for one input
MEBIBYTES = 400  # of growth over a whole run
LONGEST_MESSAGE = 12_000


class Reader(NamedTuple):
    """A reader under test.

    Attributes:
      valid: writes a tiny valid input into an empty folder.
      read: reads it and checks the result.
      share: how often it takes its turn; expensive readers less often.
    """

    valid: Callable[[Path], None]
    read: Callable[[Path], None]
    share: int


READERS: Mapping[str, Reader] = {
    "safetensors": Reader(inputs.safetensors_adapter, inputs.read_adapter, 16),
    "torch zip": Reader(inputs.torch_archive, inputs.read_adapter, 16),
    "torch stream": Reader(inputs.torch_stream, inputs.read_adapter, 12),
    "adapter_config.json": Reader(inputs.adapter_config, inputs.read_adapter, 16),
    "AdaLoRA and VeRA": Reader(inputs.variant, inputs.read_variant, 8),
    "old layouts": Reader(inputs.old_layout, inputs.read_old_layout, 6),
    "record of a merge": Reader(inputs.merge_record, inputs.read_record, 12),
    "orbax": Reader(inputs.orbax_folder, inputs.read_orbax, 2),
    "statistics": Reader(inputs.statistics_folder, inputs.read_statistics, 6),
    "pipelines as text": Reader(inputs.recipe, inputs.read_recipe, 12),
    "texts": Reader(inputs.texts, inputs.read_texts, 6),
    "images": Reader(inputs.images, inputs.read_images, 6),
    "files of image models": Reader(inputs.image_file, inputs.read_image_file, 8),
    "trees of JAX libraries": Reader(inputs.jax_tree, inputs.read_jax_tree, 1),
    "recipes": Reader(inputs.recipe_file, inputs.read_recipe_file, 8),
    "vectors of classes": Reader(inputs.vectors, inputs.read_vectors, 4),
    "base": Reader(inputs.base_folder, inputs.read_base, 4),
}
_TURNS = [name for name, reader in READERS.items() for _ in range(reader.share)]


class Finding(NamedTuple):
    """An input on which a reader failed."""

    number: int
    reader: str
    what: str


class Fuzz:
    """Tries inputs by number.

    Attributes:
      tried: reader -> number of inputs.
      read: reader -> how many of them were read.
    """

    def __init__(self, place: Path):
        self._place = place
        self._valid: dict[str, dict[str, bytes]] = {}
        self.tried: Counter[str] = Counter()
        self.read: Counter[str] = Counter()

    def run(self, numbers: range, seconds: float = float("inf")) -> Iterator[Finding]:
        """Findings among the inputs of these numbers, as far as the time allows."""
        started, memory = time.monotonic(), _memory()
        for number in numbers:
            if time.monotonic() - started > seconds:
                return
            finding = self._try(number)
            if finding:
                yield finding
            if _memory() - memory > MEBIBYTES:
                name = _TURNS[number % len(_TURNS)]
                grown = _memory() - memory
                yield Finding(number, name, f"memory has grown by {grown:.0f} MiB")
                memory = _memory()

    def _try(self, number: int) -> Finding | None:
        name = _TURNS[number % len(_TURNS)]
        folder = self._place / "input"
        shutil.rmtree(folder, ignore_errors=True)
        dice = random.Random(f"{name} {number}")
        files = change(self.valid(name), dice)
        if files:  # without any there is no folder either
            lay_out(files, folder)
        self.tried[name] += 1
        what = self._failure(name, folder)
        return Finding(number, name, what) if what else None

    def valid(self, name: str) -> dict[str, bytes]:
        """The valid input of a reader: file -> content."""
        if name not in self._valid:
            folder = self._place / "valid"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            READERS[name].valid(folder)
            READERS[name].read(folder)
            self._valid[name] = everything(folder)
        return self._valid[name]

    def _failure(self, name: str, folder: Path) -> str:
        started = time.process_time()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                READERS[name].read(folder)
            self.read[name] += 1
        except Refusal as refusal:
            message = str(refusal)
            if not is_plain(message.replace("\n", " ")):
                return f"a message that cannot be shown: {message!r}"
            if not 10 < len(message) < LONGEST_MESSAGE:
                return f"a message of {len(message)} letters: {message[:200]!r}"
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            return f"{type(error).__name__}: {str(error)[:300]!r}"
        took = time.process_time() - started
        return f"took {took:.1f} seconds" if took > SECONDS else ""


def _memory() -> float:
    """The most memory that this process has had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--first", type=int, default=0)
    arguments = parser.parse_args()
    last = arguments.first + arguments.count
    found = 0
    with tempfile.TemporaryDirectory(prefix="fuzz-") as place:
        fuzz = Fuzz(Path(place))
        for start in range(arguments.first, last, 1000):
            for finding in fuzz.run(range(start, min(start + 1000, last))):
                found += 1
                print(f"{finding.number} {finding.reader}: {finding.what}", flush=True)
            done = min(start + 1000, last)
            print(f"tried {done - arguments.first}, go on with --first {done}")
            sys.stdout.flush()
    for name in READERS:
        print(f"{name}: {fuzz.tried[name]} tried, {fuzz.read[name]} of them read")
    print(f"{sum(fuzz.tried.values())} inputs, {found} findings")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
