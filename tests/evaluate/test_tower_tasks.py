"""Reconstruction and zero-shot ImageNet on small folders and a TFDS set, with the tiny model."""

import functools
import io
import json
import pathlib
import tempfile

import benchmark_files
import golden_model
import golden_tower
import narrow_inception
import numpy as np
import PIL.Image
import pytest

import vilau_jax
from vilau_jax.evaluate import fid, picture_metrics, runner
from vilau_jax.evaluate.task import Options
from vilau_jax.models.inception import load_inception


@functools.cache
def model() -> vilau_jax.VilaU:
  return vilau_jax.VilaU.from_loaded(golden_model.tiny())


@functools.cache
def place() -> pathlib.Path:
  root = pathlib.Path(tempfile.mkdtemp(prefix="vilau_tower_"))
  for i in range(7):
    benchmark_files.picture(root / "pictures" / f"n0{i % 2}" / f"{i}.png", (50 + i, 60))
  narrow_inception.write(root / "inception.safetensors")
  return root


def reconstruct(output, **options):
  given = {"inception": str(place() / "inception.safetensors"), "batch_size": 1} | options
  return runner.run("reconstruction", data=place() / "pictures", output=output, model=model(),
                    options=Options(**given))  # fmt: skip


def test_reconstruction_figures_are_those_of_the_definitions(tmp_path):
  result = reconstruct(tmp_path)
  paths = sorted((place() / "pictures").rglob("*.png"))
  side = model().config.tower.image_size
  squares = np.stack([picture_metrics.crop(p, side, "rqvae") for p in paths])
  codes = model().encode_images(squares)
  true, drawn = squares / np.float32(255), (model().decode_codes(codes, floats=True) + 1) / 2
  metrics = result["metrics"]
  error = np.square(true.astype(float) - drawn).mean((1, 2, 3))
  assert metrics["psnr"] == pytest.approx(np.mean(-10 * np.log10(error)), rel=1e-5)
  assert metrics["ssim"] == pytest.approx(picture_metrics.ssim(true, drawn).mean(), rel=1e-5)
  network = load_inception(place() / "inception.safetensors")
  sides = [fid.features(network, x * 255, "pytorch_fid") for x in (true, drawn)]
  moments = [m for x in sides for m in (x.mean(0), np.cov(x.astype(float), rowvar=False))]
  assert metrics["fid"] == pytest.approx(fid.frechet_distance(*moments), rel=1e-4)
  assert metrics["fid"] > 0 and "far from that of many" in result["notes"][0]
  counts = [len(np.unique(codes[..., r])) for r in range(codes.shape[-1])]
  entries = model().config.tower.quantizer.entries
  assert list(result["categories"]["used"].values()) == [c / entries for c in counts]
  assert json.loads((tmp_path / "run.json").read_text())["settings"]["resize"] == "pytorch_fid"


def test_a_reconstruction_that_stops_goes_on_to_the_same_figures(tmp_path):
  def stop(done, total):
    if done:
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    options = Options(inception=str(place() / "inception.safetensors"), batch_size=1)
    runner.run("reconstruction", data=place() / "pictures", output=tmp_path / "a", model=model(),
               options=options, progress=stop)  # fmt: skip
  assert len((tmp_path / "a" / "predictions.jsonl").read_text().splitlines()) == 4
  resumed = reconstruct(tmp_path / "a")
  other = reconstruct(tmp_path / "b", batch_size=8)
  for name, value in reconstruct(tmp_path / "c")["metrics"].items():
    assert resumed["metrics"][name] == value
    assert other["metrics"][name] == pytest.approx(value, rel=1e-4), name


def test_lpips_and_protocols(tmp_path):
  tensors = golden_tower.sub(golden_tower.arrays("rqvae/lpips_narrow.npz"), "param:")
  lpips = tmp_path / "lpips.npz"
  np.savez(lpips, **tensors)
  result = reconstruct(tmp_path / "a", inception=None, lpips=str(lpips), protocol="squash")
  assert result["metrics"]["lpips"] > 0 and "fid" not in result["metrics"]
  assert "no FID" in result["notes"][0]
  assert reconstruct(tmp_path / "b", inception=None, protocol="adm", limit=2)["n"] == 2


@functools.cache
def tfds_set() -> pathlib.Path:
  """A prepared TFDS set, written without TensorFlow."""
  tfds = pytest.importorskip("tensorflow_datasets")
  from array_record.python.array_record_module import ArrayRecordWriter
  from tensorflow_datasets.proto import tf_example_generated_pb2 as proto

  root = pathlib.Path(tempfile.mkdtemp(prefix="vilau_tfds_")) / "toy" / "1.0.0"
  root.mkdir(parents=True)
  image = tfds.features.Image(shape=(None, None, 3))
  label = tfds.features.ClassLabel(names=["a", "b"])
  tfds.features.FeaturesDict({"image": image, "label": label}).save_config(root)
  writer = ArrayRecordWriter(str(root / "toy-validation.array_record-00000-of-00001"), "")
  for i, path in enumerate(sorted((place() / "pictures").rglob("*.png"))[:3]):
    buffer, example = io.BytesIO(), proto.Example()
    PIL.Image.open(path).save(buffer, "PNG")
    example.features.feature["image"].bytes_list.value.append(buffer.getvalue())
    example.features.feature["label"].int64_list.value.append(i % 2)
    writer.write(example.SerializeToString())
  writer.close()
  split = {"name": "validation", "shardLengths": ["3"], "numBytes": "100",
           "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"}  # fmt: skip
  info = {"name": "toy", "version": "1.0.0", "fileFormat": "array_record", "splits": [split]}
  (root / "dataset_info.json").write_text(json.dumps(info))
  return root


def test_reconstruction_of_a_tfds_set(tmp_path):
  result = runner.run("reconstruction", data=tfds_set(), output=tmp_path / "a", model=model())
  rows = [json.loads(line) for line in (tmp_path / "a" / "predictions.jsonl").open()]
  assert result["n"] == 3 and [row["id"] for row in rows] == ["0", "1", "2"]
  with pytest.raises(ValueError, match="has no split 'test'; it has validation"):
    runner.run("reconstruction", data=tfds_set(), output=tmp_path / "b", model=model(),
               options=Options(split="test"))  # fmt: skip


def lists(tmp_path, classes, templates=("a photo of a {}.", "{}")):
  for name, content in (("classes", classes), ("templates", templates)):
    (tmp_path / f"{name}.json").write_text(json.dumps(content))
  return Options(classnames=str(tmp_path / "classes.json"), batch_size=1,
                 templates=str(tmp_path / "templates.json"))  # fmt: skip


@pytest.mark.parametrize("source", ["folder", "tfds"])
def test_zero_shot(source, tmp_path):
  data = place() / "pictures" if source == "folder" else tfds_set()
  options = lists(tmp_path, ["dog", "cat, tabby"])
  result = runner.run(
    "imagenet", data=data, output=tmp_path / "out", model=model(), options=options
  )
  pictures = sorted((place() / "pictures").rglob("*.png"))[: result["n"]]
  images = model().embed_images(pictures)
  texts = [["a photo of a dog", "dog"], ["a photo of a cat", "cat"]]
  classes = [model().embed_texts(t, canon="hf").mean(0) for t in texts]
  classes = np.stack([c / np.linalg.norm(c) for c in classes])
  best = (images @ classes.T).argmax(1)
  gold = [int(p.parent.name[-1]) for p in pictures] if source == "folder" else [0, 1, 0]
  assert result["metrics"]["top1"] == pytest.approx(100 * np.mean(best == gold))
  assert result["metrics"]["top5"] == 100
  assert "other classes or sentences" in result["notes"][0]
  stored = (tmp_path / "out" / "classes.npy").stat().st_mtime_ns
  runner.run("imagenet", data=data, output=tmp_path / "out", model=model(), options=options)
  assert (tmp_path / "out" / "classes.npy").stat().st_mtime_ns == stored


def test_bad_input_of_tower_tasks(tmp_path):
  def zero_shot(*names, data=None, **words):
    options = lists(tmp_path, list(names), **words)
    runner.run("imagenet", data=data or place() / "pictures", output=tmp_path / "out",
               model=model(), options=options)  # fmt: skip

  with pytest.raises(ValueError, match="2 class folders, but there are 3 names"):
    zero_shot("a", "b", "c")
  with pytest.raises(ValueError, match=r"needs one \{\} for the class"):
    zero_shot("a", "b", templates=["a photo"])
  with pytest.raises(ValueError, match="must be a JSON list"):
    zero_shot()
  (tmp_path / "empty").mkdir()
  with pytest.raises(ValueError, match="no pictures below"):
    zero_shot("a", data=tmp_path / "empty")
  with pytest.raises(ValueError, match="no file of weights at"):
    reconstruct(tmp_path / "o", inception="gone.pth")
  (tmp_path / "broken").mkdir()
  (tmp_path / "broken" / "x.png").write_bytes(b"nothing")
  with pytest.raises(ValueError, match=r"picture x\.png: .* is not a picture"):
    runner.run("reconstruction", data=tmp_path / "broken", output=tmp_path / "o2", model=model())
