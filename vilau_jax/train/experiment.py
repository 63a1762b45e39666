"""From a config to everything a run needs: tokenizers, the resolved model, the data, the guards."""

import dataclasses
import difflib
import os
from collections.abc import Iterable
from typing import Any

import grain
import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from vilau_jax import checkpoint
from vilau_jax.config import VilaUConfig
from vilau_jax.convert.sources import shorten
from vilau_jax.data import pictures, pipeline
from vilau_jax.data.forms import SequenceSettings
from vilau_jax.data.records import Records
from vilau_jax.data.tokenizer import Tokenizer, TowerTokenizer, train_tokenizer
from vilau_jax.models import quantizer
from vilau_jax.train import defaults, lock

# Keys that may differ when a workdir is opened again: how long, how often, on what and from where.
CHANGEABLE = ("steps", "log", "ckpt", "guard", "mesh", "runs", "data.root", "data.codes",
              "data.threads", "data.workers", "loss.lpips_weights")  # fmt: skip


@dataclasses.dataclass
class Experiment:
  """A resolved run.

  Attributes:
    config: the experiment.
    model: the architecture, with what the tokenizer and the tower decide filled in.
    workdir: where it lives.
    tower: variables {"params": {"tower"}, "quantizer"} as numpy (stage "lm", first start), or None.
    tower_id: of the codes (stage "lm"), or None.
    tokenizer: of the stage's texts, or None where there are none.
  """

  config: ConfigDict
  model: VilaUConfig
  workdir: epath.Path
  tower: dict[str, Any] | None
  tower_id: str | None
  tokenizer: Tokenizer | TowerTokenizer | None

  def dataset(
    self, index: int, count: int, batch_size: int = 0, anchor: pipeline.Anchor | None = None
  ) -> grain.MapDataset:
    """Element i is part `index` of `count` of step i's batch (of another size where given).

    Stage "lm" with an anchor: see pipeline.lm_dataset.
    """
    c = self.config
    common = dict(
      batch_size=batch_size or c.batch_size, seed=c.seed, process_index=index, process_count=count,
      cache=self.workdir / "scanned",
    )  # fmt: skip
    if c.stage == "tower":
      side = self.model.tower.image_size
      wrong = bool(c.loss.wrong_captions)
      return pictures.tower_dataset(
        data_of(c), self.tokenizer, image_size=side, wrong=wrong, **common
      )
    return pipeline.lm_dataset(
      data_of(c),
      self.settings,
      self.tokenizer,
      self.model.tower.quantizer.depth,
      tower_id=self.tower_id,
      anchor=anchor,
      **common,
    )

  def records(self, step: int, anchor: pipeline.Anchor) -> list[list[dict[str, Any]]]:
    """Which records make the batch of `step`, by row: path, number and id of each."""
    c, common = self.config, dict(batch_size=self.config.batch_size, seed=self.config.seed)
    if c.stage == "tower":
      return pictures.tower_records(data_of(c), step=step, **common)
    depth = self.model.tower.quantizer.depth
    return pipeline.lm_records(
      data_of(c), self.settings, self.tokenizer, depth, step=step, anchor=anchor,
      tower_id=self.tower_id, cache=self.workdir / "scanned", **common,
    )  # fmt: skip

  @property
  def settings(self) -> SequenceSettings:
    """How records become sequences."""
    names = ("cfg_dropout", "max_turns", "shuffle_turns", "caption_turn", "independent_turns")
    return SequenceSettings.from_model(self.model, **{n: self.config.data[n] for n in names})


def check(config: ConfigDict, workdir: epath.PathLike) -> bool:
  """Whether the run in `workdir` has started; checks that it is this experiment, writes nothing.

  Raises:
    ValueError: if the workdir belongs to another experiment or to something else.
  """
  defaults.check(config)
  workdir = epath.Path(workdir)
  if (workdir / "config.json").exists():
    check_same(checkpoint.read_config(workdir), config, workdir)
    return True
  if workdir.exists() and any(not _ours(p.name) for p in workdir.iterdir()):
    raise ValueError(f"workdir {workdir} is neither empty nor a run (it has no config.json)")
  return False


def _ours(name: str) -> bool:
  """What a run that was killed before it wrote config.json may leave."""
  return ".model" in name or name in (lock.NAME, "config.json.partial", "scanned")


def resolve(config: ConfigDict, workdir: epath.PathLike) -> Experiment:
  """Opens or starts the run in `workdir`; writes config.json and the tokenizers when it starts.

  Raises:
    ValueError: see check; also if something needed is not given, or parts do not fit together.
  """
  started = checkpoint.first_says(check(config, workdir))
  workdir = epath.Path(workdir)
  workdir.mkdir(parents=True, exist_ok=True)
  make = _tower_experiment if config.stage == "tower" else _lm_experiment
  return make(config, workdir, started)


def check_same(stored: dict[str, Any], config: ConfigDict, workdir: epath.Path) -> None:
  """Compares the experiment of a workdir with the one asked for.

  Raises:
    ValueError: listing the keys that differ.
  """
  before, now = _flat(stored.get("experiment", {})), _flat(jsonable(config))
  differing = []
  for key in sorted(before.keys() | now.keys()):
    allowed = any(key == k or key.startswith(f"{k}.") for k in CHANGEABLE)
    if not allowed and before.get(key) != now.get(key):
      differing.append(f"{key}: {before.get(key)!r} there, {now.get(key)!r} now")
  if "stage" in (line.split(":")[0] for line in differing):  # then the rest says nothing
    differing = [line for line in differing if line.startswith("stage:")]
  if differing:
    raise ValueError(
      f"workdir {workdir} holds another experiment:\n  " + "\n  ".join(differing)
      + "\ngive another --workdir, or the config it was started with"
    )  # fmt: skip


def jsonable(config: ConfigDict) -> dict[str, Any]:
  """The config as plain dicts and lists."""

  def plain(value):
    if isinstance(value, dict):
      return {k: plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, list | tuple) else value

  return plain(config.to_dict())


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
  flat = {}
  for key, value in tree.items():
    if isinstance(value, dict):
      flat |= _flat(value, f"{prefix}{key}.")
    else:
      flat[f"{prefix}{key}"] = value
  return flat


def data_of(config: ConfigDict) -> dict[str, Any]:
  """config.data with the mixture's paths below data.codes (stage "lm", where given) or data.root.

  Raises:
    ValueError: for an empty mixture, an entry without its keys or a directory that is not there.
  """
  data = config.data.to_dict()
  root = data.get("codes") or data["root"]
  keys = ("path", "weight") if config.stage == "tower" else ("path", "weight", "form")
  if not data["mixture"]:
    raise ValueError(f"data.mixture is empty: it needs entries with {', '.join(keys)}")
  for entry in data["mixture"]:
    lacking = [key for key in keys if not isinstance(entry, dict) or key not in entry]
    if lacking:
      raise ValueError(
        f"data.mixture: {entry!r} lacks {', '.join(lacking)}; every entry is a dict with "
        f"{', '.join(keys)}, written in the config file (a flag cannot give one)"
      )
  mixture = [dict(entry, path=os.path.join(root, entry["path"])) for entry in data["mixture"]]
  for entry in mixture:
    if not epath.Path(entry["path"]).exists():
      parent = epath.Path(entry["path"]).parent
      near = [p.name for p in parent.iterdir()] if parent.exists() else []
      match = difflib.get_close_matches(os.path.basename(entry["path"]), near, 1)
      hint = f" (did you mean {match[0]!r}?)" if match else ""
      raise ValueError(f"data.mixture: no records at {entry['path']}{hint}; see data.root")
  return data | {"mixture": mixture}


def _texts(config: ConfigDict) -> Iterable[str]:
  """All texts of the mixture."""
  for path in dict.fromkeys(entry["path"] for entry in data_of(config)["mixture"]):
    for record in Records(path):
      yield record.get("caption", "")
      yield from record.get("conversations_value", ())
      yield from record.get("sentences", ())


def _tokenizer_file(
  config: ConfigDict, workdir: epath.Path, given: str, donors: Iterable[str], name: str
) -> epath.Path:
  """The tokenizer inside the workdir: already there, given, from a model in init_from, or trained
  on the mixture's texts where data.tokenizer_size allows."""
  target = workdir / name
  if checkpoint.first_says(target.exists()):
    return target
  sources = [given] if given else []
  sources += [d for d in (os.path.join(d, name) for d in donors) if epath.Path(d).exists()]
  if jax.process_index() == 0:
    if sources:
      if not epath.Path(sources[0]).exists():
        raise ValueError(f"no tokenizer at {sources[0]}")
      named = (sources[0], None) if name == checkpoint.TOKENIZER else (None, sources[0])
      checkpoint.copy_tokenizers(workdir, *named)
    elif config.data.tokenizer_size:
      train_tokenizer(_texts(config), target, config.data.tokenizer_size)
  if not sources and not config.data.tokenizer_size:
    option = "data.tokenizer" if name == checkpoint.TOKENIZER else "data.tower_tokenizer"
    raise ValueError(
      f"{option} names no file; give one, or data.tokenizer_size to train one on the records"
    )
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(f"written {name}")
  return target


def _vocabulary(wanted: int, tokenizer: Any, field: str) -> int:
  """`wanted`, or the tokenizer's own size when it is 0."""
  if wanted not in (0, tokenizer.vocab_size):
    raise ValueError(
      f"{field} is {wanted}, but the tokenizer {tokenizer.path} has {tokenizer.vocab_size} ids; "
      "0 takes the tokenizer's"
    )
  return tokenizer.vocab_size


def _finish(
  config: ConfigDict, model: VilaUConfig, workdir: epath.Path, started: bool
) -> VilaUConfig:
  """The model as the workdir has it; written there when the run starts."""
  if started:
    return checkpoint.model_config(workdir)
  stored = {"format_version": checkpoint.FORMAT_VERSION, "model": model.to_dict()}
  checkpoint.write_json(workdir / "config.json", stored | {"experiment": jsonable(config)})
  return model


def _tower_experiment(config: ConfigDict, workdir: epath.Path, started: bool) -> Experiment:
  model = VilaUConfig.from_preset(**config.model.to_dict())
  if model.tower is None:
    raise ValueError(f"model.preset {config.model.preset!r} has no tower to train")
  tokenizer = None
  if config.loss.contrastive:
    donors = config.init_from.to_dict().values()
    file = _tokenizer_file(
      config, workdir, config.data.tower_tokenizer, donors, checkpoint.TOWER_TOKENIZER
    )
    text = model.tower.text
    if text is None:
      raise ValueError(
        f"loss.contrastive is {config.loss.contrastive}, and the tower of model.preset "
        f"{config.model.preset!r} has no text encoder: set loss.contrastive=0"
      )
    tokenizer = TowerTokenizer(file, text.length, config.data.canon)
    size = _vocabulary(text.vocab_size, tokenizer, "model.tower.text.vocab_size")
    text = dataclasses.replace(text, vocab_size=size)
    model = dataclasses.replace(model, tower=dataclasses.replace(model.tower, text=text))
  elif model.tower.text is not None and not model.tower.text.vocab_size:
    raise ValueError(
      "model.tower.text.vocab_size is 0, to be that of the texts' tokenizer, and without "
      "loss.contrastive there are no texts; give a size"
    )
  model = dataclasses.replace(model, llm=None, depth=None)
  model = _finish(config, model, workdir, started)
  return Experiment(config, model, workdir, None, None, tokenizer)


def _lm_experiment(config: ConfigDict, workdir: epath.Path, started: bool) -> Experiment:
  init_from = config.init_from.to_dict()
  if "tower" in init_from and "whole" in init_from:
    raise ValueError("init_from has a tower and a whole model, which brings its own: leave one out")
  source = init_from.get("tower") or init_from.get("whole")
  if not source:
    raise ValueError("stage 'lm' needs init_from.tower (or init_from.whole): a directory with the "
                     "tower whose codes it learns")  # fmt: skip
  donors = [init_from[k] for k in ("whole", "llm") if k in init_from]
  file = _tokenizer_file(config, workdir, config.data.tokenizer, donors, checkpoint.TOKENIZER)
  tokenizer = Tokenizer(file)
  frozen = checkpoint.first_says((workdir / "frozen" / "hash.json").exists())
  if started and frozen:
    model = checkpoint.model_config(workdir)
    identity = checkpoint.frozen_tower_id(workdir)
    return Experiment(config, model, workdir, None, identity, tokenizer)
  loaded = checkpoint.load_model(source)
  if loaded.config.tower is None:
    raise ValueError(f"{source} holds no tower; init_from.tower must name one")
  checkpoint.copy_tokenizers(workdir, None, loaded.tower_tokenizer_path)
  model = _lm_model(config, loaded, whole="whole" in init_from)
  size = _vocabulary(model.llm.vocab_size, tokenizer, "model.llm.vocab_size")
  model = dataclasses.replace(model, llm=dataclasses.replace(model.llm, vocab_size=size))
  tower = {
    "params": {"tower": loaded.variables["params"]["tower"]},
    "quantizer": loaded.variables["quantizer"],
  }
  identity = checkpoint.tower_id(tower)
  experiment = Experiment(config, model, workdir, tower, identity, tokenizer)
  if config.code_scale == "auto":
    scale = _measured_scale(experiment)
    experiment.model = dataclasses.replace(model, code_scale=scale)
  elif config.code_scale != "preset":
    raise ValueError(f"code_scale must be 'preset' or 'auto', got {config.code_scale!r}")
  experiment.model = _finish(config, experiment.model, workdir, started)
  return experiment


def _lm_model(config: ConfigDict, loaded: checkpoint.LoadedModel, whole: bool) -> VilaUConfig:
  """The preset with the tower that is really there; a whole model keeps its own architecture and
  takes only config.model's overrides. One that was not trained here must have the preset's."""
  overrides = config.model.to_dict()
  preset = overrides.pop("preset")
  if whole:
    if loaded.config.name != preset:
      differing = _differing(loaded.config, VilaUConfig.from_preset(preset))
      if differing:
        raise ValueError(
          f"model.preset is {preset!r}, but {loaded.path} was made from {loaded.config.name!r}:\n  "
          + "\n  ".join(shorten(differing))
          + f"\nto train it as it is, set model.preset to {loaded.config.name!r}"
        )
    return loaded.config.with_overrides(**overrides)
  model = VilaUConfig.from_preset(preset, **overrides)
  if model.llm is None or model.depth is None or model.tower is None:
    raise ValueError(f"model.preset {preset!r} is not a whole model")
  there, wanted = (_flat(m.to_dict()["tower"]) for m in (loaded.config, model))
  differing = [
    f"tower.{key}: {there.get(key)!r} there, {value!r} in the preset"
    for key, value in wanted.items()
    if there.get(key) != value and not (key == "text.vocab_size" and value == 0)
  ]
  if differing:
    raise ValueError(
      f"{loaded.path} is not the tower of preset {preset!r}:\n  " + "\n  ".join(differing)
    )
  return dataclasses.replace(model, tower=loaded.config.tower)


def _differing(loaded: VilaUConfig, preset: VilaUConfig) -> list[str]:
  """Sizes in which a whole model and a preset differ. How a model is used, and the context that
  scaling makes, are not sizes."""
  lines = []
  for part in ("tower", "llm", "depth", "projector", "visual_positions", "code_scale"):
    there, wanted = (_flat({part: c.to_dict()[part]}) for c in (loaded, preset))
    lines += [
      f"{key}: {there.get(key)!r} there, {wanted.get(key)!r} in the preset"
      for key in sorted(there.keys() | wanted.keys())
      if there.get(key) != wanted.get(key) and key not in _NO_SIZES
    ]
  return lines


_NO_SIZES = ("llm.attention", "llm.vocab_multiple", "llm.rope_scaling", "llm.max_positions",
             "llm.unroll", "depth.dropout", "depth.unroll")  # fmt: skip


def _measured_scale(experiment: Experiment) -> float:
  """1 / standard deviation of the sums of codewords, over the pictures of the first 64 rows."""
  batch = experiment.dataset(0, 1, batch_size=64)[0]
  codes = batch["codes"][batch["visual_position"] >= 0]
  if not len(codes):
    raise ValueError("code_scale 'auto': the first batch has no pictures; give a number instead")
  sums = quantizer.embed(jax.numpy.asarray(experiment.tower["quantizer"]["codebook"]), codes)
  return float(f"{1 / float(np.std(np.asarray(sums))):.4g}")
