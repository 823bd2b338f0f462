"""The texts of the domains as the package's own jobs read them, and where all lies."""

import json
from pathlib import Path
from typing import NamedTuple

from experiments.suite import shared_folder
from jaxmerge.io.staging import staged_folder
from jaxmerge.tasks.next_tokens import Example, read_examples
from jaxmerge.tasks.texts import load_tokenizer
from jaxmerge.tasks.unlabeled import spread

HERE = Path(__file__).parent
DOMAINS = ("math", "code", "medicine", "finance")
CUT = ("medicine",)  # the ends of abstracts: without their starts they serve as well
LENGTH = 128  # tokens of prompt, completion and the end
ROWS = {"train": None, "validation": 32, "test": 64}  # of each domain, None for all


class Place(NamedTuple):
    """The folders of one run.

    Attributes:
      trained: with the base and the adapters.
      work: with texts and merges, which can be made again.
      results: with what was measured.
      domains: names of the adapters.
    """

    trained: Path = HERE / "trained"
    work: Path = HERE / "work"
    results: Path = HERE / "results"
    domains: tuple[str, ...] = DOMAINS

    @property
    def base(self) -> Path:
        """The base model.

        Raises:
          ValueError: it was not made yet; says how.
        """
        folder = self.trained / "base"
        if not folder.is_dir():
            raise ValueError(
                f"{folder}: no such folder; run: "
                f"python -m experiments.domains4.base --out {folder}"
            )
        return folder

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


def _write(path: Path, examples: list[Example]) -> None:
    rows = ({"prompt": row.prompt, "completion": row.text} for row in examples)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
