"""The class that lmms-eval loads; importing it needs lmms-eval (extra `lmms`)."""

from typing import Any

from lmms_eval.api import instance
from lmms_eval.api.model import lmms

from vilau_jax.evaluate.lmms_eval import Harness
from vilau_jax.evaluate.replicas import Replicas


class VilaUJax(lmms):
  """VILA-U in JAX. One process: the model is on all devices of the host.

  Args (as --model_args):
    checkpoint: model directory or workdir; also `pretrained`.
    num_video_frames, until, answer, output_dir: see Harness.
    batch_size: the harness passes its own.
    conv_mode, device, max_batch_size: taken because other models' command lines name them;
      conv_mode must be vicuna_v1.
  """

  is_simple = True

  def __init__(
    self,
    checkpoint: str | None = None,
    pretrained: str | None = None,
    conv_mode: str = "vicuna_v1",
    num_video_frames: int | None = None,
    batch_size: int = 1,
    until: str = "ignore",
    answer: str = "text",
    output_dir: str = ".",
    device: str | None = None,
    max_batch_size: int | None = None,
    **unknown: Any,
  ):
    super().__init__()
    if unknown:
      raise ValueError(f"unknown model_args {', '.join(unknown)}")
    if conv_mode != "vicuna_v1":
      raise ValueError(f"VILA-U's conversations are vicuna_v1, not {conv_mode!r}")
    path = checkpoint or pretrained
    if not path:
      raise ValueError("--model_args needs checkpoint=DIR")
    self._harness = Harness(
      Replicas.load(path), lambda task, split, name: self.task_dict[task][split][name],
      batch_size=batch_size, num_video_frames=num_video_frames, until=until, answer=answer,
      output_dir=output_dir,
    )  # fmt: skip

  def generate_until(self, requests) -> list[str]:
    return self._harness.generate(requests)

  def loglikelihood(self, requests) -> list[Any]:
    return _kept(self._harness.losses(requests))

  def generate_until_multi_round(self, requests) -> list[Any]:
    return _kept(self._harness.rounds(requests))

  def generate_visual_cot(self, requests) -> list[str]:
    return self._harness.sketched(requests)


def _kept(results: list[Any]) -> list[Any]:
  """0.7.0 to 0.7.3 turn a plain pair into a string and crash; what they unwrap stays as it is."""
  wrap = getattr(instance, "GenerationResult", None)
  return [wrap(text=result) for result in results] if wrap else results
