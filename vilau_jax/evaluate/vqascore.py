"""VQAScore of drawings by its official package, t2v-metrics 3.0 with CLIP-FlanT5-xxl.

The package's requirements exclude ours (NumPy 1.26, for one), so this file imports nothing of
vilau_jax, and runs by itself in an environment of the package (which wants LLaVA-NeXT and ffmpeg
besides, see its README):

    python vqascore.py OUTPUT    # that of `vilau evaluate genai-bench --output=OUTPUT`

writes OUTPUT/vqascores.json for --external_scores, and goes on where it was killed.
"""

import json
import os
import pathlib
import sys
from collections.abc import Iterable, Iterator

SCORER = "clip-flant5-xxl"
QUESTION = 'Does this figure show "{}"? Please answer yes or no.'
ANSWER = "Yes"
FILE = "vqascores.json"


def official_scores(wanted: Iterable[tuple[str, str]]) -> Iterator[float]:
  """The score of every (path of a picture, prompt).

  Raises:
    ValueError: if the package has another version than 3.0 and lacks the scorer.
  """
  import t2v_metrics
  import torch

  known = t2v_metrics.list_all_vqascore_models()
  if SCORER not in known:
    raise ValueError(
      f"this t2v_metrics lacks {SCORER}, which GenAI-Bench is scored with; install "
      f"t2v-metrics==3.0, the last that has it. It has {', '.join(known)}"
    )
  device = "cuda" if torch.cuda.is_available() else "cpu"
  scorer = t2v_metrics.VQAScore(model=SCORER, device=device)
  words = dict(question_template=QUESTION, answer_template=ANSWER)
  for path, prompt in wanted:
    # The package casts its weights to bfloat16 everywhere, but what meets them on a GPU only.
    with torch.autocast(device, dtype=torch.bfloat16):
      score = scorer(images=[path], texts=[prompt], **words)
    yield float(score)


def main(output: str) -> None:
  """Scores the drawings of an output that have no score yet."""
  root = pathlib.Path(output)
  rows = [json.loads(line) for path in sorted(root.glob("predictions*.jsonl"))
          for line in path.read_text(encoding="utf-8").split("\n") if line]  # fmt: skip
  if not rows:
    raise ValueError(f"no predictions.jsonl in {root}; run vilau evaluate genai-bench first")
  file = root / FILE
  found = json.loads(file.read_text()) if file.exists() else {}
  todo = {str(int(row["id"])): row for row in rows if str(int(row["id"])) not in found}
  wanted = ((str(root / row["file"]), row["prompt"]) for row in todo.values())
  temporary = file.with_suffix(".part")
  for name, score in zip(todo, official_scores(wanted)):
    found[name] = score
    temporary.write_text(json.dumps(found) + "\n")
    os.replace(temporary, file)
    print(f"\r{len(found)} of {len(rows)}", end="", file=sys.stderr)
  print(f"\n{file}")


if __name__ == "__main__":
  if len(sys.argv) != 2:
    sys.exit(__doc__)
  main(sys.argv[1])
