"""The public object: everything a user calls, on the golden checkpoint and on the tiny preset."""

import dataclasses
import functools
import hashlib
import io
import json

import flax.linen as nn
import golden_lm
import golden_model
import golden_tower
import jax
import numpy as np
import PIL.Image
import pytest
import small_towers

import vilau_jax
from vilau_jax.checkpoint import LoadedModel
from vilau_jax.layers.product import natural
from vilau_jax.models.tower import Tower

rng = np.random.default_rng(0)


@functools.cache
def golden() -> vilau_jax.VilaU:
  return vilau_jax.VilaU.from_loaded(golden_model.golden())


@functools.cache
def tiny() -> vilau_jax.VilaU:
  return vilau_jax.VilaU.from_loaded(golden_model.tiny())


def pool() -> np.ndarray:
  return golden_lm.load("02_vision_tower")["pool_u8"]


def test_images_equal_the_reference():
  data = golden_lm.load("09_generate_image")
  got = golden().generate_images("two dogs in the snow", temperature=0.0, cfg_scale=3.0)
  want = data["image_uint8_trunc"].transpose(0, 2, 3, 1)
  assert got.dtype == np.uint8 and got.shape == want.shape
  # Float images agree to 1e-4 (next test); truncation may then fall on either side of an integer.
  assert np.abs(got.astype(int) - want).max() <= 1 and (got == want).mean() > 0.999


def test_decoded_floats_equal_the_reference():
  data = golden_lm.load("09_generate_image")
  tower_config, tower = golden_tower.siglip_tower()
  got = Tower(tower_config).apply(tower, data["codes"][:1], method="decode_codes")
  got = np.clip((np.asarray(got) + 1) * 127.5, 0, 255)
  golden_tower.assert_close(got, data["image"].transpose(0, 2, 3, 1), 1e-4)


def test_videos_equal_the_reference():
  data = golden_lm.load("09_generate_video")
  got = golden().generate_videos(["two dogs in the snow"], temperature=0.0, cfg_scale=3.0)
  want = data["video"].transpose(0, 1, 3, 4, 2)
  assert got.shape == want.shape
  assert np.abs(got - np.floor(want)).max() <= 1 and (got == np.floor(want)).mean() > 0.999


def test_answers_equal_the_reference():
  meta = json.loads((golden_lm.A / "meta.json").read_text())
  image = vilau_jax.Image
  talks = [
    [image(pool()[golden_index("one_image")[0]]), "Describe the image."],
    [
      image(pool()[golden_index("two_images")[0]]), "and then ",
      image(pool()[golden_index("two_images")[1]]), "Which one is brighter?",
    ],
  ]  # fmt: skip
  got = golden().generate_text(talks, max_new_tokens=14)
  for answer, name in zip(got, ("one_image", "two_images")):
    tokens = golden_lm.load("09_generate_text")[f"{name}_tokens"][0, 1:]
    assert answer == golden().tokenizer.decode(tokens).strip()
    assert meta[f"text_generation_{name}"]["tokens"][1:] == tokens.tolist()


def golden_index(name):
  return golden_lm.load("09_generate_text")[f"{name}_image_index"]


def test_rows_that_mean_nothing_are_refused():
  with pytest.raises(ValueError, match="tokens holds 99999; the model's ids are 0 to"):
    tiny().text_logits([[1, 99999]])
  with pytest.raises(ValueError, match="codes and visual_position, their places"):
    tiny().text_logits([[1, 2]], codes=np.zeros((1, 1, 3), int))


def test_a_model_stays_whole_when_the_process_moves(tmp_path, monkeypatch):
  tiny().save(tmp_path / "model")
  monkeypatch.chdir(tmp_path)
  model = vilau_jax.load("model")
  monkeypatch.chdir("/")
  model.save(tmp_path / "again")
  assert model.embed_texts(["a fox"]).shape[0] == 1


def test_logits_of_a_batch_equal_the_reference():
  data = golden_lm.load("06_batch_mixed_small")
  rows = golden_lm.rows(data)
  keys = ("tokens", "codes", "visual_position", "segment_ids")
  got = np.asarray(golden().text_logits(*(rows[k] for k in keys)))
  mask = rows["segment_ids"] > 0
  golden_tower.assert_close(got[mask][:, :4], data["eval_logits_first4"][mask], 1e-4)
  golden_tower.assert_close(got[mask][:, -4:], data["eval_logits_last4"][mask], 1e-4)
  codes = np.asarray(golden().visual_logits(*(rows[k] for k in keys)))
  used = rows["visual_target"]
  logs = np.take_along_axis(codes, rows["codes"][..., None].astype(int), -1)[..., 0]
  loss = np.log(np.exp(codes).sum(-1)) - logs
  golden_tower.assert_close(loss[used].mean(), data["eval_loss_image"], 1e-4)


def test_codes_there_and_back():
  codes = golden().encode_images(list(pool()[:3]))
  assert codes.shape == (3, 4, 4, 4) and codes.dtype == np.int32
  want = golden_model.pool_codes()[:3].reshape(codes.shape)
  np.testing.assert_array_equal(codes, want)
  pictures = golden().decode_codes(codes)
  assert pictures.shape == (3, 32, 32, 3) and pictures.dtype == np.uint8
  coarse = golden().decode_codes(codes[..., :1])
  assert (coarse != pictures).any()
  np.testing.assert_array_equal(golden().decode_codes(codes.reshape(3, 16, 4)), pictures)


def test_any_picture_is_accepted_and_the_number_does_not_matter(tmp_path):
  picture = PIL.Image.fromarray(rng.integers(0, 255, (45, 31, 4), np.uint8), "RGBA")
  picture.save(tmp_path / "a.png")
  buffer = io.BytesIO()
  picture.convert("L").save(buffer, format="PNG")
  gray = rng.integers(0, 255, (1, 1), np.uint8)
  images = [tmp_path / "a.png", buffer.getvalue(), picture.convert("P"), gray]
  codes = tiny().encode_images(images)
  assert codes.shape == (4, 4, 4, 3)
  for i, image in enumerate(images):
    np.testing.assert_array_equal(tiny().encode_images([image])[0], codes[i])
  many = tiny().encode_images(np.repeat(pool()[:1], 11, axis=0))
  np.testing.assert_array_equal(many, np.repeat(tiny().encode_images(pool()[:1]), 11, axis=0))
  assert tiny().encode_images([]).shape == (0, 4, 4, 3)


def test_bad_pictures_are_named(tmp_path):
  (tmp_path / "b.png").write_bytes(b"no picture at all")
  with pytest.raises(ValueError, match=r"image 1: .*b\.png is not a picture"):
    tiny().encode_images([pool()[0], tmp_path / "b.png"])
  big = PIL.Image.new("1", (20_000, 20_000))
  big.save(tmp_path / "big.png")
  with pytest.raises(ValueError, match="too many pixels"):
    tiny().encode_images([tmp_path / "big.png"])
  with pytest.raises(ValueError, match="conversation 0"):
    tiny().generate_text([[vilau_jax.Image(tmp_path / "b.png"), "What is it?"]])


def test_embeddings_are_normalised_and_share_a_space():
  model = tiny()
  pictures = model.embed_images(pool()[:2])
  texts = model.embed_texts(["a red circle", "a blue square"])
  assert pictures.shape == texts.shape == (2, 32)
  np.testing.assert_allclose(np.linalg.norm(pictures, axis=-1), 1, rtol=1e-5)
  np.testing.assert_allclose(np.linalg.norm(texts, axis=-1), 1, rtol=1e-5)
  with pytest.raises(ValueError, match="--tower_tokenizer="):
    golden().embed_texts(["a red circle"])


def _whole(tower) -> dict:
  """A model's variables of a tower alone, random."""
  found = golden_tower.random_variables(nn.unbox(small_towers.boxed_variables(tower)))
  return found | {"params": {"tower": found["params"]}}


def test_a_cnn_tower_with_a_text_encoder_embeds_too():
  """Recipe C2 of the paper's appendix C."""
  tower = dataclasses.replace(small_towers.ODD_RQVAE, text=small_towers.TINY.text)
  config = dataclasses.replace(golden_model.tiny().config, tower=tower, llm=None, depth=None)
  loaded = LoadedModel(config, _whole(tower), None, golden_model.TOKENIZER, "c2")
  model = vilau_jax.VilaU.from_loaded(loaded)
  for found in (model.embed_images(pool()[:2]), model.embed_texts(["a fox", "two"])):
    assert found.shape == (2, tower.text.width)
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1, rtol=1e-5)
  textless = dataclasses.replace(config, tower=small_towers.ODD_RQVAE)
  bare = LoadedModel(textless, _whole(small_towers.ODD_RQVAE), None, None, "bare")
  with pytest.raises(ValueError, match="no contrastive route"):
    vilau_jax.VilaU.from_loaded(bare).embed_images(pool()[:2])


def test_sampling_is_reproducible_and_seeds_are_prompt_major():
  model, prompts = tiny(), ["a dog", "a long red road"]
  four = model.generate_images(prompts, num_images=2, seed=5)
  assert four.shape == (4, 32, 32, 3)
  np.testing.assert_array_equal(model.generate_images(prompts[1], seed=8), four[3:])
  np.testing.assert_array_equal(model.generate_images(prompts, seed=[6, 7]), four[[1, 2]])
  assert (four[0] != four[1]).any()


def test_previews_show_what_is_drawn():
  seen = []
  model = tiny()
  final = model.generate_videos(["a dog"], num_videos=2, on_progress=seen.append)
  assert [p.done for p in seen] == list(range(4, 33, 4))
  assert seen[0].preview().shape == final.shape == (2, 2, 32, 32, 3)
  np.testing.assert_array_equal(seen[-1].preview(), final)


def test_streaming_adds_up_to_the_answer():
  model = tiny()
  talk = [{"role": "user", "content": [vilau_jax.Video(list(pool()[:4])), "What happens?"]}]
  whole = model.generate_text([talk], max_new_tokens=12)[0]
  pieces = list(model.stream_text([talk], max_new_tokens=12))
  assert "".join(pieces).strip() == whole
  with pytest.raises(ValueError, match="one conversation"):
    model.stream_text(["a", "b"])


def test_scores_rank_the_greedy_answer_first():
  model = tiny()
  question = [vilau_jax.Image(pool()[0]), "What is it?"]
  other = "something else"
  scores = model.score([question, question], ["a dog", other])
  assert scores.shape == (2,) and (scores < 0).all()
  assert model.exact([question], [other]).tolist() == [False]
  with pytest.raises(ValueError, match="1 conversations need as many answers, got 2"):
    model.score([question], ["a", "b"])


def test_text_and_pictures_interleaved():
  parts = tiny().generate(["Hello"], max_new_tokens=5, temperature=1.0, seed=1)
  assert len(parts) == 1 and all(isinstance(p, str | np.ndarray) for p in parts[0])


def test_multi_turn_conversations_and_text_only_chat():
  talk = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "What now?"},
  ]
  assert len(tiny().generate_text([talk, "Hi"], max_new_tokens=3)) == 2


@pytest.mark.parametrize(
  ("contents", "words"),
  [
    ([], "no conversation"),
    ([""], "conversation 0 is empty"),
    ([["Hi"], 3], "conversation 1 is no text"),
    ([[3]], "holds a int"),
    (vilau_jax.Image("a.png"), "list of conversations"),
    ([[{"role": "robot", "content": "x"}]], "role must be"),
    ([[{"role": "user", "text": "x"}]], "needs the keys"),
    ([[{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]], "must end with"),
  ],
)
def test_broken_contents_are_explained(contents, words):
  with pytest.raises(ValueError, match=words):
    tiny().generate_text(contents)


@pytest.mark.parametrize(
  ("kwargs", "words"),
  [
    (dict(prompts=" "), "prompt 0 is empty"),
    (dict(prompts=[]), "no conversation"),
    (dict(prompts=None), "list of conversations, .* got NoneType"),
    (dict(prompts=vilau_jax.Image("a.png")), "list of conversations, .* got Image"),
    (dict(prompts="a dog", num_images=0), "num_images"),
    (dict(prompts="a dog", num_images=1.5), "num_images must be an integer, got 1.5"),
    (dict(prompts="a dog", batch_size=True), "batch_size must be an integer, got True"),
    (dict(prompts="a dog", top_k=2.5), "top_k must be an integer, got 2.5"),
    (dict(prompts="a dog", top_k=True), "top_k must be an integer, got True"),
    (dict(prompts="a dog", cfg_scale="3"), "cfg_scale must be a number, got '3'"),
    (dict(prompts="a dog", cfg_scale=1e39), "cfg_scale"),
    (dict(prompts="a dog", temperature=1e-7), "at least 1e-05, below which logits"),
    (dict(prompts="a dog", cfg_scale=-1.0), "cfg_scale"),
    (dict(prompts="a dog", top_k=0), "top_k"),
    (dict(prompts="a dog", top_p=0.0), "top_p"),
    (dict(prompts="a dog", temperature=-1.0), "temperature"),
    (dict(prompts="sea " * 2000), "context is 1024"),
    (dict(prompts="a dog", seed=[1, 2]), "2 seeds for 1 outputs"),
  ],
)
def test_broken_settings_are_explained(kwargs, words):
  with pytest.raises(ValueError, match=words):
    tiny().generate_images(**kwargs)


def test_codes_out_of_range_are_refused():
  with pytest.raises(ValueError, match=r"codes must be"):
    tiny().decode_codes(np.zeros((1, 3, 3, 3), int))
  with pytest.raises(ValueError, match=r"0\.\.31"):
    tiny().decode_codes(np.full((1, 4, 4, 3), 32))


def test_a_tower_alone_sees_but_does_not_draw_or_write():
  whole = golden_model.tiny()
  config = dataclasses.replace(whole.config, llm=None, depth=None)
  variables = whole.variables | {"params": {"tower": whole.variables["params"]["tower"]}}
  model = vilau_jax.VilaU.from_loaded(LoadedModel(config, variables, None, None, "tower dir"))
  np.testing.assert_array_equal(model.encode_images(pool()[:1]), tiny().encode_images(pool()[:1]))
  with pytest.raises(ValueError, match=r"tower dir has no language model .* holds: vision tower"):
    model.generate_images("a dog")
  with pytest.raises(ValueError, match="has no language model"):
    model.generate_text(["Hi"])


def test_a_language_model_alone_writes_but_does_not_see():
  whole = golden_model.tiny()
  config = dataclasses.replace(whole.config, tower=None, depth=None)
  variables = {"params": {"llm": whole.variables["params"]["llm"]}}
  loaded = LoadedModel(config, variables, whole.tokenizer_path, None, "llm dir")
  model = vilau_jax.VilaU.from_loaded(loaded)
  assert model.generate_text(["Hi"], max_new_tokens=4) == tiny().generate_text(
    ["Hi"], max_new_tokens=4
  )
  with pytest.raises(ValueError, match="no vision tower to see"):
    model.generate_text([[vilau_jax.Image(pool()[0]), "What is it?"]])


def test_the_identity_is_of_all_weights_and_brings_none_of_them_to_the_host(monkeypatch):
  model, sizes, asarray = vilau_jax.VilaU.from_loaded(golden_model.tiny()), [], np.asarray
  with monkeypatch.context() as patch:  # jax keeps what it has once brought
    note = lambda x, *a, **k: sizes.append(np.size(x)) or asarray(x, *a, **k)  # noqa: E731
    patch.setattr(np, "asarray", note)
    model.identity()
  assert max(sizes) <= 2 * 4096 < model.config.llm.width * model.config.llm.vocab_size
  digest = hashlib.sha256(repr(model.config).encode())  # which metadata of old files holds
  trees = [model.runtime._tower, natural(model.runtime.engine.params)]
  for path, leaf in jax.tree_util.tree_leaves_with_path(trees):
    sample = np.asarray(leaf).reshape(-1)[:: max(1, leaf.size // 4096)].astype(np.float32)
    digest.update(f"{jax.tree_util.keystr(path)} {leaf.shape}\n".encode() + sample.tobytes())
  assert model.identity() == digest.hexdigest()[:16]


def test_what_is_saved_loads_as_the_same_model(tmp_path):
  tiny().save(tmp_path / "model")
  again = vilau_jax.load(tmp_path / "model")
  assert again.identity() == tiny().identity() != golden().identity()
  np.testing.assert_array_equal(
    again.generate_images("a dog", seed=3), tiny().generate_images("a dog", seed=3)
  )
  assert again.embed_texts(["a dog"]).shape == (1, 32)
  with pytest.raises(FileExistsError):
    tiny().save(tmp_path / "model")
