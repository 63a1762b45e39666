"""Coupled speculative decoding: the joint distribution of the codes is the model's own, exactly."""

import dataclasses
import functools
import itertools
import json

import golden_model
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vilau_jax
from vilau_jax.cli import main
from vilau_jax.data.forms import SequenceSettings
from vilau_jax.data.sequence import drawing_prompt, unconditional_prompt
from vilau_jax.data.tokenizer import Tokenizer
from vilau_jax.generate import image, sampling, speculative
from vilau_jax.generate.engine import Engine

# False alarms of the chi-square test: one in a million choices of SEED and of random weights.
FALSE_ALARM, SEED = 1e-6, 5
WISH = sampling.Sampling(temperature=0.9, top_k=2, top_p=0.97, cfg_scale=1.5)
DEPTH, ENTRIES, POSITIONS = 2, 3, 4


@functools.cache
def toy(sharpness: float = 25.0) -> Engine:
  """Four positions of two codes out of three, with weights large enough that codes depend on what
  stands before them."""
  tower = dict(
    vision=dict(image_size=16, patch_size=8), quantizer=dict(depth=DEPTH, entries=ENTRIES),
    decoder=dict(resolution=16),
  )  # fmt: skip
  loaded = golden_model.tiny.__wrapped__(tower=tower, system_prompt="", dtype="float32")
  keys = iter(jax.random.split(jax.random.key(SEED), 1000))

  def louder(path, leaf):
    if "kernel" not in str(path[-1]):
      return leaf
    return leaf + 0.02 * sharpness * jax.random.normal(next(keys), leaf.shape)

  params = dict(loaded.variables["params"])
  params["depth"] = jax.tree_util.tree_map_with_path(louder, params["depth"])
  book = jax.random.normal(next(keys), loaded.variables["quantizer"]["codebook"].shape)
  params["projector"] = jax.tree_util.tree_map_with_path(louder, params["projector"])
  variables = {"params": params, "quantizer": {"codebook": book}}
  return Engine(loaded.config, variables)


@functools.cache
def tiny() -> vilau_jax.VilaU:
  return vilau_jax.VilaU.from_loaded(golden_model.tiny())


@functools.cache
def prompts(engine):
  tokenizer, settings = (
    Tokenizer(golden_model.TOKENIZER),
    SequenceSettings.from_model(engine.config),
  )
  given = [
    drawing_prompt(t, tokenizer, settings, "image") for t in ("A dog.", "The sea, at night.")
  ]
  return given, unconditional_prompt(tokenizer, settings, "image")


@functools.cache
def logits_of_every_picture(engine) -> tuple[np.ndarray, jax.Array]:
  """All E**(T R) pictures [n, T, R], and their logits under the first prompt and without it."""
  given, unconditional = prompts(engine)
  every = np.array(list(itertools.product(range(ENTRIES), repeat=POSITIONS * DEPTH)), np.int32)
  every = every.reshape(-1, POSITIONS, DEPTH)
  logits = []
  for prompt in (given[0], unconditional):
    size, count = len(prompt.tokens), len(every)
    tokens = np.tile(np.concatenate([prompt.tokens, np.zeros(POSITIONS, np.int32)]), (count, 1))
    places = np.tile(np.arange(size, size + POSITIONS, dtype=np.int32), (count, 1))
    batch = dict(
      tokens=tokens, segment_ids=np.ones_like(tokens), visual_position=places, codes=every,
      positions=np.tile(np.arange(tokens.shape[1], dtype=np.int32), (count, 1)),
    )  # fmt: skip
    hidden = engine.hidden(batch)[:, size - 1 : size - 1 + POSITIONS]
    flat = engine.code_logits(hidden.reshape(-1, hidden.shape[-1]), every.reshape(-1, DEPTH))
    logits.append(flat.reshape(-1, ENTRIES))
  return every, jnp.concatenate(logits)


def exact(engine, wish) -> np.ndarray:
  """The probability of every picture, by teacher forcing."""
  every, logits = logits_of_every_picture(engine)
  p, finite = speculative.distribution(logits, wish.values(ENTRIES), wish.switches(ENTRIES))
  assert finite.all()
  chosen = np.take_along_axis(np.asarray(p, np.float64), every.reshape(-1, 1), axis=1)
  return chosen.reshape(len(every), -1).prod(axis=1)


def chi_square(counts: np.ndarray, probabilities: np.ndarray) -> float:
  """Probability of a worse fit; cells expected less than five times are taken together."""
  expected = probabilities * counts.sum()
  rare = expected < 5
  observed = np.append(counts[~rare], counts[rare].sum())
  expected = np.append(expected[~rare], expected[rare].sum())
  if expected[-1] < 1e-9:
    assert observed[-1] == 0  # what cannot be drawn is not drawn
    observed, expected = observed[:-1], expected[:-1]
  statistic = np.sum((observed - expected) ** 2 / expected)
  return float(jax.scipy.stats.chi2.sf(statistic, len(observed) - 1))


@pytest.mark.slow
def test_the_joint_distribution_is_unchanged():
  """6000 pictures against the exact law of all 6561; the same pictures are far from other laws,
  so the test has power."""
  engine = toy()
  given, unconditional = prompts(engine)
  counts, passes = np.zeros(ENTRIES ** (POSITIONS * DEPTH)), []
  weights = ENTRIES ** np.arange(POSITIONS * DEPTH)[::-1]
  for start in range(0, 6_000, 2_000):
    codes, taken = speculative.generate_codes(
      engine,
      [given[0]] * 2_000,
      unconditional,
      WISH,
      range(start, start + 2_000),
      window=3,
      batch_size=2_000,
    )
    np.add.at(counts, codes.reshape(len(codes), -1) @ weights, 1)
    passes.append(taken)
  law = exact(engine, WISH)
  assert law.sum() == pytest.approx(1, abs=1e-4) and (law > 1e-4).sum() > 50
  assert chi_square(counts, law) > FALSE_ALARM
  for other in (dict(temperature=1.5), dict(cfg_scale=3.0), dict(top_k=None)):
    assert chi_square(counts, exact(engine, dataclasses.replace(WISH, **other))) < 1e-9
  passes = np.concatenate(passes)
  assert passes.max() <= POSITIONS and passes.mean() < 0.95 * POSITIONS


def test_greedy_codes_are_those_of_plain_decoding():
  """Also with a window beyond the end, and prompts of different lengths."""
  engine = toy()
  given, unconditional = prompts(engine)
  wish = sampling.Sampling(temperature=0.0, cfg_scale=2.0)
  plain = image.generate_codes(engine, given, unconditional, wish, [0, 1])
  for window in (1, 8, 100_000):
    codes, passes = speculative.generate_codes(
      engine, given, unconditional, wish, [0, 1], window=window
    )
    np.testing.assert_array_equal(codes, plain)
    assert (passes == POSITIONS).all() if window == 1 else (passes <= POSITIONS).all()


def test_an_output_does_not_depend_on_its_company():
  engine = toy()
  given, unconditional = prompts(engine)
  both, passes = speculative.generate_codes(engine, given, unconditional, WISH, [3, 4], window=3)
  alone, taken = speculative.generate_codes(engine, given[1:], unconditional, WISH, [4], window=3)
  np.testing.assert_array_equal(alone[0], both[1])
  assert taken[0] == passes[1]


def test_a_batch_is_divided_and_watched():
  """Rows of the grid are shown when the slowest output has them; a batch of one ends by itself."""
  engine = toy()
  given, unconditional = prompts(engine)
  whole, _ = speculative.generate_codes(engine, [*given, given[0]], unconditional, WISH, range(3))
  steps = list(
    speculative.stream_codes(
      engine, [*given, given[0]], unconditional, WISH, range(3), window=8, batch_size=2
    )
  )
  assert [s.outputs for s in steps if s.done == s.total] == [range(2), range(2, 3)]
  for step in steps:
    assert step.done % engine.config.tower.grid == 0 and (step.passes <= step.total).all()
    np.testing.assert_array_equal(step.codes, whole[step.outputs, : step.done])


def test_the_public_class_offers_it():
  model = tiny()
  plain, seen = model.generate_images("a dog", num_images=2, seed=3), []
  drawn = model.generate_images(
    "a dog", num_images=2, seed=3, speculative=4, on_progress=seen.append
  )
  assert drawn.shape == plain.shape and (drawn != plain).any()
  np.testing.assert_array_equal(seen[-1].preview(), drawn)
  swapped = model.generate_images("a dog", num_images=2, seed=[4, 3], speculative=4)
  np.testing.assert_array_equal(swapped, drawn[::-1])
  video = model.generate_videos("a dog", num_videos=2, num_frames=1, speculative=4)
  assert video.shape == (2, 1, 32, 32, 3)
  with pytest.raises(vilau_jax.Cancelled):
    model.generate_images("a dog", num_images=2, speculative=4, cancel=lambda: True)


def test_a_model_is_loaded_draws_and_makes_it_again(tmp_path, capsys):
  tiny().save(tmp_path / "model")
  common = ["generate", "image", f"--model={tmp_path / 'model'}", "--prompt=a dog", "--seed=3"]
  out = tmp_path / "out"
  assert main.run([*common, f"--output={out}", "--num=2", "--speculative=4"]) == 0
  assert "positions a pass" in capsys.readouterr().out
  entries = json.loads((out / "metadata.json").read_text())
  assert [entry["settings"]["speculative"] for entry in entries] == [4, 4]
  again = ["generate", f"--from_metadata={out / 'metadata.json'}", f"--output={tmp_path / 'b'}"]
  assert main.run(again) == 0
  assert "2 of 2 are the same" in capsys.readouterr().out
  assert main.run([*common, f"--output={tmp_path / 'c'}"]) == 0
  entry = json.loads((tmp_path / "c" / "metadata.json").read_text())[0]
  assert "speculative" not in entry["settings"]  # such files are as they were
  for extra, words in (
    (["--speculative=-1"], "--speculative must be at least 0"),
    (["--speculative=4", "--int8"], "--speculative and --int8 do not go together"),
  ):
    assert main.run([*common, f"--output={out}", *extra]) == 2
    assert words in capsys.readouterr().err
  video = [*common, f"--output={out}", "--speculative=4", "--first_frame=fox.png"]
  assert main.run(["generate", "video", *video[2:]]) == 2
  assert "--first_frame do not go together" in capsys.readouterr().err


def test_what_it_does_not_support_is_named():
  picture = np.zeros((8, 8, 3), np.uint8)
  for call, words in (
    (lambda: tiny().generate_images("a", speculative=-1), "speculative must be at least 1"),
    (
      lambda: tiny().generate_videos("a", speculative=2, first_frames=[picture]),
      "does not support outputs with a given beginning",
    ),
    (
      lambda: vilau_jax.VilaU.from_loaded(golden_model.tiny(), quantize="int8").generate_images(
        "a", speculative=2
      ),
      "does not support weights in int8",
    ),
  ):
    with pytest.raises(ValueError, match=words):
      call()


def test_bad_input_is_named():
  engine = toy()
  given, unconditional = prompts(engine)
  with pytest.raises(ValueError, match="window must be at least 1, got 0"):
    speculative.generate_codes(engine, given, unconditional, WISH, [0, 1], window=0)
