"""Load on the page and on the batch engine, with a small model of random weights.

  python -m tests.load --users=50 --minutes=10          # the page: needs the extra demo
  python -m tests.load --prompts=10000 --kills=3        # `vilau generate batch`

The page: every request must be answered or refused politely, in order; memory must stay flat, and
whoever cancels or leaves must free the model. The batch engine: memory must stay constant, and the
files of a run that was killed must equal those of one that was not. Exit code 1 if not.
"""

import argparse
import json
import pathlib
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "evaluate"))

from tests.load import batch, page


def small_model(root: pathlib.Path) -> pathlib.Path:
  import quickstart_model

  quickstart_model.write_random(root / "model", [*page.PROMPTS, "what is it?"])
  return root / "model"


def main() -> int:
  parser = argparse.ArgumentParser(prog="python -m tests.load", description=__doc__.splitlines()[0])
  parser.add_argument("--users", type=int, default=50, help="visitors at once")
  parser.add_argument("--minutes", type=float, default=10, help="how long they come back")
  parser.add_argument("--waiting", type=int, default=20, help="that may queue (vilau demo)")
  parser.add_argument("--patience", type=float, default=900, help="seconds for the last answers")
  parser.add_argument("--prompts", type=int, default=0, help="of a batch, instead of the page")
  parser.add_argument("--kills", type=int, default=3, help="of the batch")
  parser.add_argument("--model", type=pathlib.Path, help="another model than a small one")
  parser.add_argument("--seed", type=int, default=0, help="of what visitors do")
  options = parser.parse_args()
  root = pathlib.Path(tempfile.mkdtemp(prefix="load-"))
  model = options.model or small_model(root)
  if options.prompts:
    figures, wrong = batch.measure(model, root, options)
  else:
    figures, wrong = page.measure(model, root / "page.log", options)
  print(json.dumps(figures, indent=1))
  for line in wrong:
    print(f"WRONG: {line}")
  print(f"logs and outputs are in {root}")
  return 1 if wrong else 0


if __name__ == "__main__":
  sys.exit(main())
