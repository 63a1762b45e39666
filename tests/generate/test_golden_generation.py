"""Whole generations against the reference: greedy codes and tokens exactly, logits and pixels."""

import functools

import golden_lm
import golden_model
import golden_tower
import jax
import numpy as np
import pytest

from vilau_jax.generate import image, sampling, text
from vilau_jax.generate.engine import Engine

META_STEPS = {"one_image": 14, "two_images": 14, "video": 10}


@functools.cache
def engine() -> Engine:
  loaded = golden_model.golden()
  return Engine(loaded.config, loaded.variables)


def draw(data, cfg_scale, frames=1, **kwargs):
  ids, mask = data["input_ids"], data["attention_mask"]
  half = len(ids) // 2
  prompts = [golden_model.prompt(ids[i], mask[i]) for i in range(len(ids))]
  wish = sampling.Sampling(temperature=0.0, cfg_scale=cfg_scale)
  seeds = list(range(half))
  return image.generate_codes(
    engine(), prompts[:half], prompts[half], wish, seeds, frames=frames, **kwargs
  )


def guided_logits(data, codes, positions, cfg_scale):
  """Teacher-forced code logits of the generated codes, guided: [n, positions, R, E]."""
  ids, mask = data["input_ids"], data["attention_mask"]
  rows = []
  for i, (row, valid) in enumerate(zip(ids, mask)):
    prompt = row[valid]
    n = len(prompt)
    mine = codes[i % len(codes)]
    batch = dict(
      tokens=np.concatenate([prompt, np.zeros(len(mine), np.int32)])[None],
      segment_ids=np.ones((1, n + len(mine)), np.int32),
      positions=np.arange(n + len(mine), dtype=np.int32)[None],
      visual_position=np.arange(n, n + len(mine), dtype=np.int32)[None],
      codes=mine[None],
    )
    hidden = engine().hidden(batch)[0, n - 1 : n - 1 + positions]
    rows.append(engine().code_logits(hidden, mine[:positions]))
  rows = np.stack(jax.device_get(rows))
  conditional, unconditional = np.split(rows, 2)
  return unconditional + cfg_scale * (conditional - unconditional)


def test_image_codes_are_exact():
  data = golden_lm.load("09_generate_image")
  codes = draw(data, 3.0)
  np.testing.assert_array_equal(codes, data["codes"][:1])
  got = guided_logits(data, codes, 16, 3.0)[0]
  golden_tower.assert_close(got, data["cfg_logits"], 1e-4)


@pytest.mark.parametrize("cfg_scale", [1.0, 4.5])
def test_two_prompts_of_different_length_in_one_batch(cfg_scale):
  data = golden_lm.load("09_generate_image_two")
  codes = draw(data, cfg_scale)
  np.testing.assert_array_equal(codes, data[f"codes_cfg{cfg_scale}"][:2])
  got = guided_logits(data, codes, 2, cfg_scale)  # [prompt, position, depth, entry]
  want = data[f"logits_cfg{cfg_scale}"].transpose(2, 0, 1, 3)
  golden_tower.assert_close(got, want, 1e-4)


def test_video_codes_are_exact():
  data = golden_lm.load("09_generate_video")
  codes = draw(data, 3.0, frames=2)
  np.testing.assert_array_equal(codes, data["codes"][:1])
  got = guided_logits(data, codes, 4, 3.0)[0]
  golden_tower.assert_close(got, data["cfg_logits_first4"], 1e-4)


def test_a_chunk_of_many_positions_equals_single_steps():
  data = golden_lm.load("09_generate_image_two")
  model = engine()
  wish = sampling.Sampling(temperature=0.8, top_k=20, top_p=0.9, cfg_scale=2.0)
  ids, mask = data["input_ids"], data["attention_mask"]
  prompts = [golden_model.prompt(ids[i], mask[i]) for i in range(3)]
  given = (model, prompts[:2], prompts[2], wish, [5, 6])
  seen = list(image.stream_codes(*given))
  single = image.finished(iter(seen))
  assert [p.done for p in seen] == [4, 8, 12, 16] and seen[-1].total == 16
  np.testing.assert_array_equal(seen[1].codes, single[:, :8])
  before, model.steps_at_once = model.steps_at_once, 4
  try:
    np.testing.assert_array_equal(image.generate_codes(*given), single)
  finally:
    model.steps_at_once = before


def text_case(name):
  data = golden_lm.load("09_generate_text")
  prompt = golden_model.prompt(data[f"{name}_input_ids"], images=data[f"{name}_image_index"])
  return prompt, data[f"{name}_tokens"][0, 1:].tolist()  # the first one was never fed


def test_text_tokens_are_exact_in_one_batch():
  cases = [text_case(name) for name in META_STEPS]
  wish = sampling.Sampling(temperature=0.0)
  got = text.complete(engine(), [c[0] for c in cases], wish, [0, 1, 2], max_new_tokens=14, stop=[2])
  for ids, (_, want) in zip(got, cases):
    assert len(want) >= 10 and ids[: len(want)] == want


def test_text_logits_of_the_first_steps():
  prompt, want = text_case("one_image")
  tokens = np.concatenate([prompt.tokens, want[:3]])
  batch = dict(
    tokens=tokens[None],
    segment_ids=np.ones((1, len(tokens)), np.int32),
    positions=np.arange(len(tokens), dtype=np.int32)[None],
    visual_position=prompt.visual_position[None],
    codes=prompt.codes[None],
  )
  got = engine().text_logits(engine().hidden(batch)[0, len(prompt.tokens) - 1 :])
  want = golden_lm.load("09_generate_text")["one_image_step_logits_first4"]
  golden_tower.assert_close(got, want, 1e-4)
