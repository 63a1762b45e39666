"""What benchmarks of questions share: the model answers conversations, greedily."""

import pathlib
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from vilau_jax.evaluate.task import Options, Request, Rows, pick
from vilau_jax.generate.contents import Image

SHORT = "\nAnswer the question using a single word or phrase."  # LLaVA's and VILA's suffix


class Answering:
  """Base of benchmarks whose predictions are {"answer": text}.

  Args:
    data: the benchmark's directory.
    options: see Options.
  """

  name: ClassVar[str]
  protocols: ClassVar[tuple[str, ...]]
  splits: ClassVar[tuple[str, ...]]
  max_new_tokens: ClassVar[int] = 128
  uses: ClassVar[tuple[str, ...]] = ("max_new_tokens",)

  def __init__(self, data: pathlib.Path, options: Options):
    options.check(self.name, self.uses)
    self.data, self.options = data, options
    self.protocol = pick("protocol", options.protocol, self.protocols)
    self.split = pick("split", options.split, self.splits)
    self.settings: dict[str, Any] = {
      "temperature": 0.0,
      "max_new_tokens": options.max_new_tokens or self.max_new_tokens,
    }
    self.sources: list[pathlib.Path] = []
    self._images: dict[str, Image] = {}

  def predict(
    self, model, requests: Sequence[Request], directory: pathlib.Path
  ) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    answers = model.generate_text(
      [request.content for request in requests],
      max_new_tokens=self.settings["max_new_tokens"],
      temperature=0.0,
      batch_size=self.options.batch_size,
    )
    return [{"answer": answer} for answer in answers], {}

  def adopt(self, rows: list[dict[str, Any]], requests: Sequence[Request]) -> list[dict[str, Any]]:
    return rows

  def image(self, path: str) -> Image:
    """One object a file, so that a picture with many questions is encoded once a chunk."""
    return self._images.setdefault(path, Image(path))


def answer(rows: Rows, name: str) -> str | None:
  """The answer to request `name`, or None without a prediction."""
  return rows[name]["answer"].strip() if name in rows else None
