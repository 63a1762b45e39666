"""What a conversation may ask for: pictures of pictures, videos of pictures, drawing when told to;
streams, previews and cancelling; and what is read once."""

import functools
import json

import golden_model
import numpy as np
import pytest

import vilau_jax
from vilau_jax.checkpoint import LoadedModel
from vilau_jax.cli import main
from vilau_jax.generate import start, text

rng = np.random.default_rng(1)
PICTURE = rng.integers(0, 255, (40, 50, 3), np.uint8)


@functools.cache
def tiny() -> vilau_jax.VilaU:
  return vilau_jax.VilaU.from_loaded(golden_model.tiny())


def test_a_picture_in_the_prompt_changes_what_is_drawn():
  asked = [vilau_jax.Image(PICTURE), "the same in winter"]
  other = [vilau_jax.Image(255 - PICTURE), "the same in winter"]
  model = vilau_jax.VilaU.from_loaded(golden_model.golden())  # tiny() hears only its seed
  drawn = model.generate_images([asked, other, "the same in winter"], seed=[3, 3, 3])
  assert len({picture.tobytes() for picture in drawn}) == 3
  np.testing.assert_array_equal(model.generate_images([asked], seed=3)[0], drawn[0])


def test_a_video_goes_on_from_its_first_frame_as_it_would_have():
  model, seen = tiny(), []
  model.generate_videos(["a dog", "the sea"], seed=4, on_progress=seen.append)
  codes = seen[-1].codes
  wanted = model.runtime.drawing(["a dog", "the sea"], 1, "video", 4)
  wanted["given"] = codes[:, :16]
  from vilau_jax.generate import image

  wish = model.runtime.visual_wish()
  again = image.generate_codes(model.runtime.engine, wish=wish, frames=2, **wanted)
  np.testing.assert_array_equal(again, codes)


def test_videos_begin_with_the_pictures_that_are_given():
  video = tiny().generate_videos(["a dog"], num_videos=2, first_frames=[PICTURE], seed=1)
  frame = tiny().decode_codes(tiny().encode_images([PICTURE], geometry="crop"))
  np.testing.assert_array_equal(video[:, 0], np.repeat(frame, 2, axis=0))
  assert (video[0, 1] != video[1, 1]).any()
  with pytest.raises(ValueError, match="2 prompts need as many first frames, got 1"):
    tiny().generate_videos(["a", "b"], first_frames=[PICTURE])
  with pytest.raises(ValueError, match="num_frames of 2 at least"):
    tiny().generate_videos("a", first_frames=[PICTURE], num_frames=1)


def test_told_to_draw_it_draws_what_generate_images_draws():
  parts = tiny().generate(["a dog"], answer="image", seed=6, max_new_tokens=4)[0]
  np.testing.assert_array_equal(parts[0], tiny().generate_images("a dog", seed=6)[0])
  video = tiny().generate(["a dog"], answer="video", seed=6, max_new_tokens=4)[0][0]
  np.testing.assert_array_equal(video, tiny().generate_videos("a dog", seed=6)[0])
  with pytest.raises(ValueError, match='answer must be "text"'):
    tiny().generate(["a dog"], answer="song")
  with pytest.raises(ValueError, match="context is 1024"):
    tiny().generate(["sea " * 2000], answer="image")
  with pytest.raises(ValueError, match="prompt 1 has 6066 positions"):
    tiny().generate(["Hello", "sea " * 2000])
  with pytest.raises(ValueError, match="prompt 1 has"):  # of the prompts, not of the outputs
    tiny().generate_images(["ok", "sea " * 2000], num_images=4)


def test_a_picture_that_just_fits_is_drawn():
  model = tiny()
  words = next(
    text for n in range(300, 400) for text in ["sea " * n + "a" * k for k in range(1, 9)]
    if len(model.runtime.prompts([text], "image")[0].tokens) == model.runtime.engine.context - 17
  )  # fmt: skip
  [[drawn]] = model.generate([words], answer="image", max_new_tokens=1)
  assert drawn.shape == model.generate_images([words])[0].shape


def eager(marker: str) -> vilau_jax.VilaU:
  """The tiny model with a head that wants to draw behind the prompt "Hello"."""
  loaded = golden_model.tiny()
  runtime = tiny().runtime
  sequence = runtime.prompts(["Hello"])[0]
  length = len(sequence.tokens)
  batch = dict(tokens=sequence.tokens[None], segment_ids=np.ones((1, length), np.int32),
               positions=np.arange(length, dtype=np.int32)[None])  # fmt: skip
  hidden = np.asarray(runtime.engine.hidden(batch)[0, -1])
  llm = dict(loaded.variables["params"]["llm"])
  head = np.array(llm["lm_head"])
  head[:, getattr(runtime.tokenizer, marker)] = 10 * hidden
  llm["lm_head"] = head
  variables = loaded.variables | {"params": loaded.variables["params"] | {"llm": llm}}
  return vilau_jax.VilaU.from_loaded(
    LoadedModel(loaded.config, variables, loaded.tokenizer_path, None, "eager")
  )


def test_the_model_may_decide_to_draw_and_streams_what_it_does():
  model = eager("im_start")
  parts = model.generate(["Hello"], max_visuals=1, max_new_tokens=12, seed=2)[0]
  assert isinstance(parts[0], np.ndarray) and parts[0].shape == (32, 32, 3)
  events = list(model.stream(["Hello"], max_visuals=1, max_new_tokens=12, seed=2))
  progress = [e for e in events if not isinstance(e, str | np.ndarray)]
  assert [p.done for p in progress] == [4, 8, 12] and progress[0].preview().shape == (1, 32, 32, 3)
  pictures = [e for e in events if isinstance(e, np.ndarray)]
  np.testing.assert_array_equal(pictures[0], parts[0])
  told = "".join(e for e in events if isinstance(e, str))
  assert told.strip() == "".join(p for p in parts if isinstance(p, str)).strip()
  with pytest.raises(ValueError, match="one conversation"):
    model.stream(["a", "b"])


def test_an_answer_in_words_ends_where_the_model_begins_to_draw(tmp_path, capsys):
  model, began = eager("im_start"), []
  assert model.generate_text(["Hello"], max_new_tokens=12) == [""]
  assert not list(model.stream_text(["Hello"], max_new_tokens=12, on_draw=began.append))
  assert began == ["image"]
  tokenizer = model.tokenizer
  ids = [*tokenizer.encode("A film:"), tokenizer.vi_start]
  assert "".join(text.pieces(tokenizer, ids, began.append)) == "A film:"
  assert began == ["image", "video"]
  (tmp_path / "p.txt").write_text("Hello\n")
  model.save(tmp_path / "model")
  typed = ["generate", "batch", "--kind=text", f"--model={tmp_path / 'model'}"]
  typed += [f"--prompts={tmp_path / 'p.txt'}", f"--output={tmp_path / 'out'}"]
  assert main.run(typed) == 0
  assert json.loads((tmp_path / "out" / "results.jsonl").read_text())["text"] == ""
  capsys.readouterr()
  assert main.run(["chat", f"--model={tmp_path / 'model'}", "Hello"]) == 0
  printed = capsys.readouterr()
  assert not printed.out.strip() and "the model began to draw" in printed.err
  assert "vilau generate image" in printed.err and "loading" in printed.err


def test_texts_are_written_in_pieces_and_empty_ones_are_none(monkeypatch):
  model, pieces, stream = tiny(), [], text.stream

  def note(engine, prompts, *args, **kwargs):
    pieces.append(len(prompts))
    return stream(engine, prompts, *args, **kwargs)

  monkeypatch.setattr(text, "stream", note)
  how = dict(max_new_tokens=4, temperature=1.0, seed=1)
  parts = model.generate(["Hello", "Hi", "the sea"], batch_size=2, **how)
  assert pieces == [2, 1]
  assert parts == model.generate(["Hello", "Hi", "the sea"], **how)
  monkeypatch.setattr(model.tokenizer, "decode", lambda ids: "  ")
  assert model.generate(["Hello"], **how) == [[]]


def test_previews_of_few_depths_are_coarser():
  seen = []
  final = tiny().generate_images("a dog", on_progress=seen.append)
  np.testing.assert_array_equal(seen[-1].preview(3), final)
  assert (seen[-1].preview(1) != final).any()
  with pytest.raises(ValueError, match=r"depths must be in 1\.\.3"):
    seen[0].preview(0)


def test_cancelling_ends_between_two_chunks():
  done = []
  with pytest.raises(vilau_jax.Cancelled, match="8 of 16"):
    tiny().generate_images(
      "a dog", on_progress=lambda p: done.append(p.done), cancel=lambda: len(done) == 2
    )
  assert done == [4, 8]
  with pytest.raises(vilau_jax.Cancelled):
    tiny().generate(["Hello"], answer="image", cancel=lambda: True)


def test_the_system_prompt_is_read_once_and_changes_nothing():
  model = tiny()
  engine = model.runtime.engine
  assert len(engine.prefix) > start.WORTH
  talks = [[vilau_jax.Image(PICTURE), "What is it?"], "Hi", "Tell me about the sea."]
  run = lambda: (  # noqa: E731
    model.generate_text(talks, temperature=0.8, max_new_tokens=8),
    model.generate_images(talks, seed=1).tobytes(),
  )
  with_prefix, caches = run(), engine.prefix_caches
  assert caches is not None and caches[0][0].shape[2] == len(engine.prefix)
  assert run() == with_prefix and engine.prefix_caches is caches
  prefix, engine.prefix = engine.prefix, ()
  try:
    assert run() == with_prefix
  finally:
    engine.prefix = prefix


def test_a_prompt_of_many_rows_is_read_once():
  engine = tiny().runtime.engine
  a, b, u, twin = tiny().runtime.prompts(["a dog", "the sea", "nothing", "a dog"])
  rows = []
  original = engine.start
  engine.start = lambda batch, *a, **k: (
    rows.append(len(batch["tokens"])) or original(batch, *a, **k)
  )
  try:
    shared = start.begin(engine, [a, b, u, u], 8)
    again = start.begin(engine, [a, twin, a, a, u, u, u, u], 8)
  finally:
    engine.start = original
  assert rows[-2:] == [3, 2]
  np.testing.assert_array_equal(shared.pending[2], shared.pending[3])
  np.testing.assert_allclose(again.caches[1][0][3], shared.caches[1][0][0], atol=1e-5)
  np.testing.assert_array_equal(again.valid[0], shared.valid[0])


def test_a_video_of_one_frame_is_read_and_drawn():
  model = tiny()
  one = model.generate_text([[vilau_jax.Video([PICTURE]), "What?"]], max_new_tokens=4)
  assert one == model.generate_text([[vilau_jax.Video([PICTURE] * 2), "What?"]], max_new_tokens=4)
  assert model.generate_videos("a dog", num_frames=1).shape == (1, 1, 32, 32, 3)


@pytest.mark.parametrize(
  ("kwargs", "words"),
  [
    (dict(num_videos=0), "num_videos must be at least 1"),
    (dict(num_frames=0), "num_frames must be at least 1"),
    (dict(batch_size=0), "batch_size must be at least 1"),
    (dict(first_frames=["nothing.png"]), "image 0: no image file at nothing.png"),
  ],
)
def test_broken_wishes_for_videos_are_explained(kwargs, words):
  with pytest.raises(ValueError, match=words):
    tiny().generate_videos("a dog", **kwargs)


def test_damaged_weights_are_an_error_when_writing():
  loaded = golden_model.tiny()
  llm = loaded.variables["params"]["llm"]
  llm = llm | {"lm_head": np.full_like(llm["lm_head"], np.nan)}
  variables = loaded.variables | {"params": loaded.variables["params"] | {"llm": llm}}
  broken = vilau_jax.VilaU.from_loaded(
    LoadedModel(loaded.config, variables, loaded.tokenizer_path, None, "broken")
  )
  with pytest.raises(ValueError, match="not finite"):
    broken.generate_text(["Hi"])
  with pytest.raises(ValueError, match="not finite"):
    list(broken.stream_text(["Hi"]))
