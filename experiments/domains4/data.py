"""The texts of the domains as the package's own jobs read them, and where all lies."""

import json
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from experiments.lora import Lora
from experiments.suite import shared_folder
from jaxmerge.io.staging import staged_folder
from jaxmerge.tasks.next_tokens import Example, read_examples
from jaxmerge.tasks.texts import load_tokenizer
from jaxmerge.tasks.unlabeled import spread

HERE = Path(__file__).parent
DOMAINS = ("math", "code", "medicine", "finance")
CUT = ("medicine",)  # the ends of abstracts: without their starts they serve as well
LENGTH = 128  # tokens of prompt, completion and the end
LORA = Lora(rank=16, alpha=32, targets=("q_proj", "v_proj"))
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
LINEAR_LORA = replace(LORA, targets=(*ATTENTION, "gate_proj", "up_proj", "down_proj"))
ROWS = {"train": None, "validation": 32, "test": 64}  # of each domain, None for all


class Place(NamedTuple):
    """The folders of one run.

    Attributes:
      model: folder of the base, see `base`.
      trained: folder with the adapters.
      work: folder with texts and merges, which can be made again.
      results: folder with what was measured of merges.
      metrics: file with what was measured of the adapters.
      domains: names of the adapters.
      lora: their rank, scale and target layers.
    """

    model: Path = HERE / "trained" / "base"
    trained: Path = HERE / "trained"
    work: Path = HERE / "work"
    results: Path = HERE / "results"
    metrics: Path = HERE / "metrics.json"
    domains: tuple[str, ...] = DOMAINS
    lora: Lora = LORA

    @property
    def base(self) -> Path:
        """The folder of the base model.

        Raises:
          ValueError: it was not made yet; says how.
        """
        if not self.model.is_dir():
            raise ValueError(
                f"{self.model}: no such folder; run: "
                f"python -m experiments.domains4.base --out {self.model}"
            )
        return self.model

    @property
    def adapters(self) -> list[Path]:
        """The folders of the adapters."""
        return [self.trained / domain for domain in self.domains]

    def texts(self, part: str) -> Path:
        """A folder with one file of prompts and completions for each domain.

        It is written once, from the folder of `experiments.suite.shared_folder`: of
        each domain the rows that have at most `LENGTH` tokens, of these at even
        distances as many as `ROWS` says. Prompts of `CUT` lose words at their start
        until they fit.

        Args:
          part: "train", "validation" or "test".
        """
        folder = self.work / "data" / part
        if not folder.is_dir():
            with staged_folder(folder) as staged:
                for domain in self.domains:
                    _write(staged / f"{domain}.jsonl", self._chosen(domain, part))
        return folder

    def _chosen(self, domain: str, part: str) -> list[Example]:
        """The rows of a domain that are used."""
        tokenizer = load_tokenizer(self.base)

        def fits(prompt: str, completion: str) -> bool:
            # one token more ends the text
            return len(tokenizer.encode(prompt + completion).ids) < LENGTH

        found, source = [], shared_folder() / "data" / "generation" / domain
        for row in read_examples(source / f"{part}.jsonl.gz"):
            prompt = row.prompt or ""
            while domain in CUT and prompt and not fits(prompt, row.text):
                prompt = prompt.partition(" ")[2]
            if prompt and fits(prompt, row.text):
                found.append(row._replace(prompt=prompt))
        return [found[index] for index in spread(len(found), ROWS[part])]


QUERY_VALUE = Place()
LINEAR = Place(
    lora=LINEAR_LORA,
    trained=HERE / "trained" / "linear",
    work=HERE / "work" / "linear",
    results=HERE / "results" / "linear",
    metrics=HERE / "metrics_linear.json",
)


def _write(path: Path, examples: list[Example]) -> None:
    rows = ({"prompt": row.prompt, "completion": row.text} for row in examples)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
