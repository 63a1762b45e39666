"""An output is the same alone, in a batch, in other company, and whatever the padding."""

import functools

import golden_model
import numpy as np
import pytest

from vilau_jax.data.conversation import turn
from vilau_jax.data.forms import SequenceSettings
from vilau_jax.data.sequence import (
  drawing_prompt,
  extended,
  prompt,
  unconditional_prompt,
)
from vilau_jax.data.tokenizer import Tokenizer
from vilau_jax.generate import cache, image, interleaved, sampling, score, text
from vilau_jax.generate.engine import Engine, stacked

TALKS = ["Hi", "What is a dog? " * 5, "Tell me about the sea and the sky.", "Name a color."]
WISH = sampling.Sampling(temperature=0.9, top_k=200, top_p=0.95)
DRAW = sampling.Sampling(temperature=1.0, top_k=20, top_p=0.9, cfg_scale=2.0)


@functools.cache
def tokenizer():
  return Tokenizer(golden_model.TOKENIZER)


@functools.cache
def engine(**overrides):
  loaded = golden_model.tiny(**overrides)
  return Engine(loaded.config, loaded.variables)


def settings():
  return SequenceSettings.from_model(engine().config)


def talks():
  return [prompt([turn("user", t)], tokenizer(), settings()) for t in TALKS]


def drawing(kind="image"):
  prompts = [drawing_prompt(t, tokenizer(), settings(), kind) for t in TALKS]
  return prompts, unconditional_prompt(tokenizer(), settings(), kind)


def test_text_rows_do_not_depend_on_their_company():
  run = lambda chosen: text.complete(  # noqa: E731
    engine(), [talks()[i] for i in chosen], WISH, [100 + i for i in chosen],
    max_new_tokens=12, stop=[2],
  )  # fmt: skip
  together = run([0, 1, 2, 3])
  assert run([1]) == together[1:2]
  assert run([3, 0]) == [together[3], together[0]]
  assert len({tuple(ids) for ids in together}) == 4


def test_text_stops_by_row_and_at_its_limit():
  first = text.complete(engine(), talks()[:2], WISH, [0, 1], max_new_tokens=8, stop=[2])
  stop = first[0][2]
  again = text.complete(engine(), talks()[:2], WISH, [0, 1], max_new_tokens=[8, 3], stop=[stop])
  assert again[0] == first[0][: first[0].index(stop) + 1]
  assert again[1] == first[1][:3]


@pytest.mark.parametrize(
  "overrides",
  [
    {},
    pytest.param(
      {"visual_positions": "next_cell", "code_scale": 0.5}, marks=pytest.mark.slow, id="next_cell"
    ),
  ],
)
def test_drawn_rows_do_not_depend_on_their_company(overrides):
  model = engine(**overrides)
  prompts, unconditional = drawing()
  run = lambda chosen, **k: image.generate_codes(  # noqa: E731
    model, [prompts[i] for i in chosen], unconditional, DRAW, [7 + i for i in chosen], **k
  )
  together = run([0, 1, 2, 3])
  np.testing.assert_array_equal(run([2])[0], together[2])
  np.testing.assert_array_equal(run([0, 1, 2, 3], batch_size=3), together)
  assert len(np.unique(together)) > 5


def teacher_forced(model, prompt_, codes):
  """Logits of the codes of one drawn output, from one pass over the whole row."""
  whole = extended(prompt_, codes=codes)
  length = len(whole.tokens)
  batch = dict(
    tokens=whole.tokens[None],
    segment_ids=np.ones((1, length), np.int32),
    positions=np.arange(length, dtype=np.int32)[None],
    visual_position=whole.visual_position[None],
    codes=whole.codes[None],
  )
  hidden = model.hidden(batch)[0, len(prompt_.tokens) - 1 : -1]
  return np.asarray(model.code_logits(hidden, codes))


@pytest.mark.parametrize("overrides", [{}, {"visual_positions": "next_cell", "code_scale": 0.5}])
@pytest.mark.parametrize("kind", ["image", "video"])
def test_cached_drawing_equals_teacher_forcing(overrides, kind):
  model = engine(**overrides)
  prompts, unconditional = drawing(kind)
  greedy = sampling.Sampling(temperature=0.0)
  frames = 1 if kind == "image" else 2
  codes = image.generate_codes(model, prompts[:2], unconditional, greedy, [0, 1], frames=frames)
  for row, mine in zip(prompts, codes):
    logits = teacher_forced(model, row, mine)
    best = np.sort(logits, axis=-1)
    sure = best[..., -1] - best[..., -2] > 1e-5
    np.testing.assert_array_equal(logits.argmax(-1)[sure], mine[sure])


def test_greedy_answers_are_exact_and_others_are_not():
  greedy = sampling.Sampling(temperature=0.0)
  answers = text.complete(engine(), talks(), greedy, [0] * 4, max_new_tokens=5, stop=[2])
  likelihood, exact = score.score(engine(), talks(), answers)
  assert exact.all() and (likelihood < 0).all()
  wrong = [[*ids[:-1], (ids[-1] + 1) % 512] for ids in answers]
  worse, exact = score.score(engine(), talks(), wrong)
  assert not exact.any() and (worse < likelihood).all()
  alone, _ = score.score(engine(), talks()[2:3], wrong[2:3])
  np.testing.assert_allclose(alone, worse[2:3], rtol=1e-5)


def test_drawing_inside_of_text():
  """Told to draw by a marker at the end, it draws, and goes on writing behind the end marker."""
  t = tokenizer()
  asked = prompt([turn("user", "Draw a dog")], t, settings())
  _, unconditional = drawing()
  told = extended(asked, [t.im_start])
  rules = interleaved.Rules(
    WISH, DRAW, {"image": unconditional, "video": drawing("video")[1]},
    max_new_tokens=6, max_visuals=1, video_frames=2,
  )  # fmt: skip
  rows = interleaved.generate(engine(), t, [told, asked], rules, [3, 4])
  assert rows[0][0].kind == "image"
  assert rows[0][0].codes.shape == (16, 3)
  alone = image.generate_codes(engine(), [told], unconditional, DRAW, [3])
  np.testing.assert_array_equal(rows[0][0].codes, alone[0])
  assert rows[1][0].kind == "text" and len(rows[1][0].ids) <= 6


def test_padding_and_buckets():
  assert [cache.bucket(n) for n in (1, 32, 33, 64, 65, 200)] == [32, 32, 64, 64, 128, 256]
  batch = cache.left_pad(talks(), 3)
  assert batch["tokens"].shape[1] - 1 in (64, 128, 256)
  assert batch["valid"][:, -1].all() and not batch["valid"][0, 0]
  assert batch["positions"][0, -1] == len(talks()[0].tokens) - 1


def test_a_new_length_in_the_same_bucket_does_not_compile_again():
  from vilau_jax.generate import engine as programs

  greedy = sampling.Sampling(temperature=0.0)
  run = lambda words: text.complete(  # noqa: E731
    engine(), [prompt([turn("user", "sea " * words)], tokenizer(), settings())], greedy, [0],
    max_new_tokens=2, stop=[2],
  )  # fmt: skip
  run(3)
  before = programs.prefill._cache_size(), programs.text_step._cache_size()
  run(5)
  assert (programs.prefill._cache_size(), programs.text_step._cache_size()) == before


def test_prompts_longer_than_the_context_are_refused():
  long = prompt([turn("user", "sea and sky " * 400)], tokenizer(), settings())
  with pytest.raises(ValueError, match=r"context is 1024"):
    text.complete(engine(), [long], WISH, [0], max_new_tokens=4, stop=[2])
  _, unconditional = drawing()
  with pytest.raises(ValueError, match=r"context is 1024"):
    image.generate_codes(engine(), [long], unconditional, DRAW, [0])


def test_damaged_weights_are_an_error_not_a_black_picture():
  loaded = golden_model.tiny()
  broken = loaded.variables | {"params": dict(loaded.variables["params"])}
  depth = dict(broken["params"]["depth"])
  depth["pos_emb_d"] = np.full_like(depth["pos_emb_d"], np.nan)
  broken["params"]["depth"] = depth
  prompts, unconditional = drawing()
  with pytest.raises(ValueError, match="not finite"):
    image.generate_codes(Engine(loaded.config, broken), prompts[:1], unconditional, DRAW, [0])


def test_stacking_again_gives_the_parameters_back():
  loaded, model = golden_model.tiny(), engine()
  got = stacked(model.params, model.stored)
  for part, tree in got.items():
    want = loaded.variables["params"][part]
    assert set(tree) == set(want)
    np.testing.assert_array_equal(
      np.concatenate([np.ravel(a) for a in _leaves(tree)]),
      np.concatenate([np.ravel(a) for a in _leaves(want)]),
    )


def _leaves(tree):
  return [leaf for key in sorted(tree) for leaf in _leaves(tree[key])] if isinstance(
    tree, dict
  ) else [np.asarray(tree)]  # fmt: skip


def test_an_answer_without_a_limit_ends_with_the_context():
  count = 1024 - len(prompt([turn("user", "sea")], tokenizer(), settings()).tokens)
  long = prompt([turn("user", "sea " * (count // 3))], tokenizer(), settings())
  room = 1024 - len(long.tokens)
  assert 0 < room < text.LONGEST
  steps = list(text.stream(engine(), [long], WISH, [0], max_new_tokens=None, stop=[]))
  assert len(steps) == room
