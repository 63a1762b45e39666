"""What each extension that the quickstart uses is worth: the same steps with it and without it.

python -m vilau_jax.bench.ablations --run=runs/quickstart --output=runs/ablations [--stage=tower]
    [--names=code,restart] [--share=0.6] [--seed=0]

Run from a checkout, after launch/quickstart.sh: its data are read, and its tower and codes by the
rows of the language model. --share is that of the quickstart's steps which every row takes: a model
that has made a quarter of them draws nothing yet.
Interrupted, the same command goes on. Prints the table and writes it to OUTPUT/STAGE.md.
"""

import json
import pathlib
import runpy
import time
from typing import Any

import jax
from absl import app, flags
from ml_collections import ConfigDict

from vilau_jax import api
from vilau_jax.evaluate import drawing, reading, seeing
from vilau_jax.evaluate.parts import replacing
from vilau_jax.evaluate.scenes import Judge
from vilau_jax.evaluate.sets import Sets
from vilau_jax.train import loop

_RUN = flags.DEFINE_string("run", "runs/quickstart", "a finished quickstart")
_OUTPUT = flags.DEFINE_string("output", "runs/ablations", "where the rows are trained")
_STAGE = flags.DEFINE_enum("stage", None, ["tower", "lm"], "which rows; both if not given")
_NAMES = flags.DEFINE_list(
  "names", None, "rows whose names contain one of these words, and the first"
)
_SHARE = flags.DEFINE_float("share", 0.6, "of the quickstart's steps", lower_bound=0.001)
_SEED = flags.DEFINE_integer("seed", 0, "of training and drawing")

QUANTIZER = "model.tower.quantizer"
# Row -> fields that differ from the quickstart's. Muon's learning rates are too high for AdamW.
ROWS: dict[str, dict[str, dict[str, Any]]] = {
  "tower": {
    "as it is": {},
    "AdamW for all weights": {"optim.muon": False, "optim.peak_lr": 1e-3},
    "one learning rate for all parts": {"optim.lr_multipliers": {}},
    "equal captions are negatives": {"loss.equal_captions": False},
    "no captions with one thing wrong": {"loss.wrong_captions": 0.0},
    "no positions where features are pooled": {"model.tower.vision.pool_positions": False},
    "codes restart below 1, anywhere": {
      f"{QUANTIZER}.restart_threshold": 1.0,
      f"{QUANTIZER}.restart_draw": "uniform",
    },
    "no steps before the quantiser": {"loss.quantizer_start": 0},
    "decoder to 20 pixels, shuffled by 3": {
      "model.tower.decoder.multipliers": (1, 2, 2),
      "model.tower.decoder.pixel_shuffle": 3,
    },
  },
  "lm": {
    "as it is": {},
    "AdamW for all weights": {"optim.muon": False, "optim.peak_lr": 2e-3},
    "no embedding of the next cell": {"model.visual_positions": "none"},
    "code sums as they are": {"code_scale": "preset"},
    "every depth weighs 1": {"loss.code_depth_weights": ()},
    "text weighs 1": {"loss.text": 1.0},
    "answers see those before them": {"data.independent_turns": False},
  },
}
PICTURES, DRAWINGS, QUESTIONS = 400, 200, 150


def chosen(stage: str, words: list[str] | None) -> dict[str, dict[str, Any]]:
  """Rows of a stage whose names contain one of `words`, and the first; all for None.

  Raises:
    ValueError: for a word that no row of any stage has.
  """
  for word in words or ():
    if not any(word in name for rows in ROWS.values() for name in rows):
      raise ValueError(f"--names={word}: no row has it; they are {[*ROWS['tower'], *ROWS['lm']]}")
  first = next(iter(ROWS[stage]))
  return {
    name: changes
    for name, changes in ROWS[stage].items()
    if words is None or name == first or any(word in name for word in words)
  }


def experiment(stage: str, changes: dict[str, Any], run: str, share: float, seed: int):
  """The quickstart's config of a stage for a share of its steps, with fields changed by path."""
  config = runpy.run_path(f"configs/quickstart_{stage}.py")["get_config"]()
  config.runs, config.seed = run, seed
  config = ConfigDict(config.copy_and_resolve_references())
  config.steps = max(2, round(share * config.steps))
  if stage == "tower":
    config.loss.quantizer_start = config.steps * 8 // 100
  config.log.samples_every = 0
  with config.unlocked():
    for path, value in changes.items():
      *parents, leaf = path.split(".")
      at = config
      for name in parents:
        at[name] = at.get(name, ConfigDict())
        at = at[name]
      at[leaf] = value
  return config


def figures(stage: str, workdir: pathlib.Path, sets: Sets, seed: int) -> dict[str, float]:
  """What a trained row can do, on held-out data."""
  model, judge = api.load(workdir), Judge.of(sets.canvas)
  if stage == "tower":
    found = seeing.pictures(model, sets, judge, most=PICTURES)[0]
    return {
      "scenes, dB": found["psnr"]["scenes"]["value"],
      "easy-VQA, dB": found["psnr"]["easy_vqa"]["value"],
      "finds its caption, %": 100 * seeing.retrieval(model, sets.scenes)[0]["at_1"],
      "entries used at depth 1": found["codes"]["used"][0],
    }
  sampling = model.config.sampling
  wish = {"cfg_scale": sampling.cfg_scale, "temperature": sampling.temperature}
  hand = drawing.Hand(model, judge, seed)
  drawn = drawing.drawings(hand, sets.scenes.first(DRAWINGS), wish)[0]["rates"]
  read = reading.scenes(model, sets.scenes.first(QUESTIONS))[0]
  return {
    "objects, %": 100 * drawn["object"],
    "number, %": 100 * drawn["count"],
    "all right, one kind, %": 100 * drawn["all_count_scenes"],
    "questions, %": 100 * read["kinds"]["all"]["value"],
    "captions, %": 100 * read["captions"]["all"]["value"],
  }


def table(rows: dict[str, dict[str, float]]) -> str:
  """Markdown."""
  columns = list(next(iter(rows.values())))
  lines = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
  for name, values in rows.items():
    lines.append(f"| {name} | {' | '.join(f'{values[c]:.3g}' for c in columns)} |")
  return "\n".join(lines)


def main(_) -> None:
  output = pathlib.Path(_OUTPUT.value)
  sets = Sets(pathlib.Path(_RUN.value) / "data", side=60)
  for stage in [_STAGE.value] if _STAGE.value else ROWS:
    done: dict[str, dict[str, float]] = {}
    for name, changes in chosen(stage, _NAMES.value).items():
      workdir = output / stage / name.replace(" ", "_").replace(",", "")
      kept = workdir / "ablation.json"
      if not kept.exists():
        config = experiment(stage, changes, _RUN.value, _SHARE.value, _SEED.value)
        began = time.monotonic()
        if not loop.train(config, workdir)["finished"]:
          raise SystemExit("stopped; the same command goes on")
        minutes = (time.monotonic() - began) / 60
        found = figures(stage, workdir, sets, _SEED.value) | {"minutes": minutes}
        with replacing(kept) as temporary:
          temporary.write_text(json.dumps(found), encoding="utf-8")
        jax.clear_caches()
      done[name] = json.loads(kept.read_text(encoding="utf-8"))
      print(table(done), flush=True)
    (output / f"{stage}.md").write_text(table(done) + "\n", encoding="utf-8")


if __name__ == "__main__":
  app.run(main)
