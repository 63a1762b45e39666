"""The figures of the quickstart: their names in report.json and what they mean."""

import dataclasses
import math
from typing import Any


@dataclasses.dataclass(frozen=True)
class Figure:
  """One row of the table. `unit` is "share" (0..1, shown as percent), "dB" or "min"."""

  name: str
  words: str
  unit: str = "share"
  headline: bool = True


GROUPS: dict[str, tuple[Figure, ...]] = {
  "Seeing: pictures through codes and back, pictures matched with captions": (
    Figure("psnr_scenes", "Reconstruction of held-out scenes", "dB"),
    Figure("psnr_easy_vqa", "Reconstruction of the easy-VQA test pictures", "dB"),
    Figure("psnr_video", "Reconstruction of frames of held-out videos", "dB"),
    Figure("retrieval_at_1", "Picture finds its caption among unseen ones"),
    Figure("retrieval_at_5", "… among its first five", headline=False),
  ),
  "Reading: answers about pictures it has not seen": (
    Figure("qa_accuracy", "Questions about held-out scenes, every token right"),
    Figure("qa_what", "… what is in the picture", headline=False),
    Figure("qa_count", "… how many", headline=False),
    Figure("qa_side", "… what is on the left or right", headline=False),
    Figure("qa_relation", "… is it to the left of it", headline=False),
    Figure("qa_exists", "… is there one", headline=False),
    Figure("qa_background", "… colour of the background", headline=False),
    Figure("caption_exact", "Caption of a held-out scene, word for word"),
    Figure("caption_exact_count", "… scenes with one to three of a kind", headline=False),
    Figure("caption_exact_pair", "… scenes with two different things", headline=False),
    Figure("easy_vqa_accuracy", "easy-VQA, published test questions"),
    Figure("easy_vqa_wh", "… what and which colour", headline=False),
    Figure("easy_vqa_yes_no", "… yes or no", headline=False),
    Figure("video_to_text_direction", "Video: the caption names the right direction"),
    Figure("video_to_text_object", "Video: the caption names the right object", headline=False),
    Figure("video_to_text_exact", "Video: caption word for word", headline=False),
    Figure("video_qa_accuracy", "Video: questions", headline=False),
  ),
  "Drawing: prompts whose combination it has not seen, seen by the judge": (
    Figure("t2i_background", "Background colour is right"),
    Figure("t2i_object", "The right kinds of object, no other"),
    Figure("t2i_count", "The right number of objects"),
    Figure("t2i_all_count_scenes", "Everything right at once, one to three of a kind"),
    Figure("t2i_pairs", "Two objects, the right one on the left"),
    Figure("t2i_all", "Everything right at once, every prompt", headline=False),
    Figure("t2i_easy_vqa_all", "easy-VQA's shapes: colour and shape right", headline=False),
  ),
  "Animating: prompts for short videos": (
    Figure("t2v_object", "The right object in the first and the last frame"),
    Figure("t2v_direction", "It moves in the right direction"),
    Figure("t2v_background", "Background colour is right", headline=False),
    Figure("t2v_all", "Everything right at once", headline=False),
  ),
  "The judge itself": (
    Figure("scorer_ground_truth_all", "Everything right, on the true pictures"),
    Figure("scorer_ceiling_all", "… on the same pictures after a round trip through the codes"),
    Figure("scorer_shuffled_all", "… on true pictures of other prompts", headline=False),
    Figure("t2v_all_truth", "Everything right, on true videos", headline=False),
    Figure("t2v_all_ceiling", "… after a round trip through the codes", headline=False),
  ),
}


class Scores:
  """Collects the figures: value, number of samples, and what chance or no picture gives."""

  def __init__(self):
    self.values: dict[str, float] = {}
    self.n: dict[str, int] = {}
    self.floors: dict[str, dict[str, Any]] = {}

  def add(
    self, name: str, value: float, n: int, floor: float | None = None, floor_is: str = "chance"
  ) -> None:
    self.values[name] = round(float(value), 4)
    self.n[name] = int(n)
    if floor is not None:
      self.floors[name] = {"value": round(float(floor), 4), "is": floor_is}

  def shown(self, figure: Figure) -> str:
    return shown(self.values[figure.name], figure.unit)

  def error(self, figure: Figure) -> str:
    """Standard error of a share, as text; empty for other units."""
    if figure.unit != "share":
      return ""
    p, n = self.values[figure.name], max(self.n[figure.name], 1)
    return f"±{100 * math.sqrt(p * (1 - p) / n):.1f}"

  def floor(self, figure: Figure) -> str:
    floor = self.floors.get(figure.name)
    return f"{shown(floor['value'], figure.unit)} {floor['is']}" if floor else ""


def shown(value: float, unit: str) -> str:
  return f"{100 * value:.1f}%" if unit == "share" else f"{value:.1f} {unit}"
