"""Rows that are refilled while others go on give what each job gives alone."""

import functools
import itertools

import golden_model
import numpy as np
import pytest

from vilau_jax.data.conversation import turn
from vilau_jax.data.forms import SequenceSettings
from vilau_jax.data.sequence import drawing_prompt, prompt, shared_beginning, unconditional_prompt
from vilau_jax.data.tokenizer import Tokenizer
from vilau_jax.generate import engine as programs
from vilau_jax.generate import image, sampling, slots, text
from vilau_jax.generate.engine import Engine
from vilau_jax.generate.slots import Job

WISH = sampling.Sampling(temperature=0.9, top_k=200, top_p=0.95)
DRAW = sampling.Sampling(temperature=1.0, top_k=20, top_p=0.9, cfg_scale=2.0)


@functools.cache
def tokenizer():
  return Tokenizer(golden_model.TOKENIZER)


@functools.cache
def engine():
  loaded = golden_model.tiny()
  model = Engine(loaded.config, loaded.variables)
  model.prefix = shared_beginning(tokenizer(), settings())
  return model


def settings():
  return SequenceSettings.from_model(golden_model.tiny().config)


def talk(words: int):
  return prompt([turn("user", "sea " * words)], tokenizer(), settings())


def written(jobs, count):
  found = {}
  for job, ids in slots.write(engine(), jobs, WISH, slots=count, stop=[]):
    found[job.tag] = ids
  return found


def test_texts_equal_those_written_alone_wherever_they_are_in_the_ring():
  limits = [14, 3, 9, 14, 5, 14, 2, 11]
  jobs = [Job(talk(i + 1), 50 + i, n, i) for i, n in enumerate(limits)]
  found = written(jobs, 2)
  assert [len(found[i]) for i in range(8)] == limits
  assert sum(limits) / 2 > 32  # columns behind the first prompts: the ring went round
  for i, job in enumerate(jobs):
    alone = text.complete(
      engine(), [job.prompt], WISH, [job.seed], max_new_tokens=job.steps, stop=[]
    )
    assert found[i] == alone[0], i


def test_a_prompt_that_is_too_long_for_the_ring_waits_for_a_larger_one():
  jobs = [
    Job(talk(2), 1, 4, 0),
    Job(talk(2), 2, 9, 1),
    Job(talk(90), 3, 6, 2),
    Job(talk(1), 4, 3, 3),
  ]
  found = written(jobs, 2)
  alone = text.complete(engine(), [talk(90)], WISH, [3], max_new_tokens=6, stop=[])
  assert sorted(found) == [0, 1, 2, 3] and found[2] == alone[0]


def test_pictures_and_videos_share_rows_and_guidance():
  unconditional = unconditional_prompt(tokenizer(), settings(), "image")
  prompts = [drawing_prompt(t, tokenizer(), settings()) for t in ("a dog", "two red cats", "sea")]
  jobs = [Job(prompts[i % 3], 7 + i, 16 * (1 + (i + 1) % 2), i) for i in range(5)]
  drawn = slots.draw(engine(), jobs, unconditional, DRAW, slots=2)
  found = {job.tag: codes for job, codes in drawn}
  for i, job in enumerate(jobs):
    alone = image.generate_codes(
      engine(), [job.prompt], unconditional, DRAW, [job.seed], frames=job.steps // 16
    )
    np.testing.assert_array_equal(found[i], alone[0])


def test_jobs_are_read_as_slots_become_free():
  pulled = itertools.count()
  endless = (Job(talk(1 + i % 5), i, 1 + i % 4, i) for i in pulled)
  taken = list(itertools.islice(slots.write(engine(), endless, WISH, slots=2, stop=[]), 30))
  assert len(taken) == 30 and next(pulled) <= 30 + 2 * 2


def test_refilling_needs_few_programs():
  run = lambda: written([Job(talk(1 + i % 6), i, 2 + i % 3, i) for i in range(12)], 2)  # noqa: E731
  run()
  written([Job(talk(3), 0, 4, 0)], 2)
  sizes = lambda: [f._cache_size() for f in (programs.prefill, programs.text_step, slots.insert)]  # noqa: E731
  before = sizes()
  written([Job(talk(2 + i % 5), i, 3 + i % 5, i) for i in range(12)], 2)
  assert sizes() == before


def test_a_job_beyond_the_context_is_refused():
  with pytest.raises(ValueError, match="context is 1024"):
    written([Job(talk(2), 0, 1020, 0)], 2)
