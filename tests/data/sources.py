"""Small data sets in exactly the forms in which their publishers ship them, made of real bytes."""

import base64
import csv
import io
import json
import pickle
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

from vilau_jax.data import media


def picture(number: int, size=(40, 30), form: str = "JPEG") -> bytes:
  """A picture of its own by number, (width, height)."""
  small = Image.fromarray(np.random.default_rng(number).integers(0, 256, (3, 4, 3), np.uint8))
  buffer = io.BytesIO()
  small.resize(size, Image.Resampling.BICUBIC).save(buffer, format=form)
  return buffer.getvalue()


def base64_of(number: int, **kwargs) -> str:
  return base64.b64encode(picture(number, **kwargs)).decode()


def movie(path, number: int, frames: int = 10):
  path.parent.mkdir(parents=True, exist_ok=True)
  color = np.random.default_rng(number).integers(0, 200, 3)
  shown = [np.broadcast_to(color + 5 * i, (32, 48, 3)) for i in range(frames)]
  return media.write_video(np.stack(shown).astype(np.uint8), path, fps=8)


def put(path, data: bytes | str):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(data.encode() if isinstance(data, str) else data)
  return path


def said(*texts):
  return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


def llava(root):
  images = root / "images"
  put(images / "coco/a.jpg", picture(0))
  put(images / "sam/b.png", picture(1, form="PNG"))
  put(images / "c.webp", picture(2, form="WEBP"))
  movie(images / "clips/v.mp4", 3)
  movie(images / "w.mp4", 4)
  rows = [
    {"id": "000", "image": "coco/a.jpg", "conversations": said("What is it?\n<image>", "A blur.")},
    {"id": 1, "image": "sam/b.png", "conversations": said("Colours?", "Some.", "More?", "No.")},
    {
      "id": "two",
      "image": ["coco/a.jpg", "c.webp"],
      "conversations": said("<image>\nand\n<image>\ndiffer?", "Yes."),
    },
    {
      "images": ["c.webp"],
      "conversations": [{"from": "gpt", "value": "Hi"}, *said("<image>", "x")],
    },
    {"id": "t", "conversations": said("What is two plus two?", "Four.")},
    {"id": "v", "video": "clips/v.mp4", "conversations": said("<video>\nWhat moves?", "Nothing.")},
    {"video_id": "w", "q": "Which colour?", "a": "Dark.", "fps": 3},
  ]
  return put(root / "share.json", json.dumps(rows, indent=1))


def document(*sentences, images=(), url="http://x"):
  infos = [
    {"image_base64": base64_of(n), "matched_text_index": place, "raw_url": f"{url}/{n}"}
    for n, place in images
  ]
  return {
    "text_list": list(sentences),
    "image_info": infos,
    "similarity_matrix": [[0.1] * len(sentences)] * len(infos),
    "url": url,
  }


def llava_lines(root):
  rows = json.loads(llava(root).read_text())
  return put(root / "share.jsonl", "\n".join(map(json.dumps, rows)) + "\n")


def mmc4(root):
  documents = [
    [
      document("One.", "A <image> word.", "Three.", images=[(0, 2), (1, 0), (2, 2)]),
      document("Alone.", images=[(3, 0)]),
    ],
    [document(*"abcdefgh", images=[(n, 7 - n) for n in range(8)])],
  ]
  for number, shard in enumerate(documents):
    put(root / f"part-{number:05}.pkl", pickle.dumps(shard, protocol=2 + 2 * number))
    put(root / f"part-{number:05}.count", str(len(shard)))
  return root


def mmc4_jsonl(root):
  rows = []
  for number in range(2):
    put(root / "images" / f"{number}.jpg", picture(number))
    info = [{"image_name": f"{number}.jpg", "matched_text_index": 1, "matched_sim": 0.3}]
    rows.append({"text_list": ["Before.", "After."], "image_info": info, "url": str(number)})
  return put(root / "docs_shard_0.jsonl", "\n".join(map(json.dumps, rows)))


def vflan(root):
  several = (
    "Image Descriptions follow.\nQuestion: What?\nAnswer: A bear.\nQuestion: Where?\nAnswer: "
  )
  rows = [
    {"question": "Say hello.", "answer": "Hello, <image>.", "image": [], "id": 0},
    {"question": "<image>\nWhat is it?", "answer:": "A blur.", "image:": base64_of(5), "id": "q1"},
    {"question": several, "answer": "Here.", "image": [base64_of(6), "pictures/x.jpg"]},
    {"question": "Frames?", "answer": "Eight.", "image": [base64_of(n) for n in range(8)]},
  ]
  put(root / "pictures/x.jpg", picture(7))
  put(root / "text_flan_1m.pkl", pickle.dumps(rows[:1]))
  put(root / "part-00000.pkl", pickle.dumps(rows[1:]))
  put(root / "part-00000.count", "3\n")
  return root


COLUMNS = ("video", "caption", "aesthetic score", "motion score", "temporal consistency score")


def openvid(root):
  buffer = io.StringIO()
  writer = csv.writer(buffer)
  writer.writerow([*COLUMNS, "camera motion", "frame", "fps", "seconds"])
  for number, caption in enumerate(("a dark thing", 'it says "hi",\nthen goes', "light, and more")):
    movie(root / "video" / f"clip{number}.mp4", number, frames=9 + number)
    writer.writerow([f"clip{number}.mp4", caption, 5.1, 2.0, 0.9, "static", 10, 8.0, 1.25])
  put(root / "data/train/OpenVid-1M.csv", buffer.getvalue())
  return root


def tar(path, members):
  path.parent.mkdir(parents=True, exist_ok=True)
  with tarfile.open(path, "w") as archive:
    for name, data in members:
      data = data.encode() if isinstance(data, str) else data
      info = tarfile.TarInfo(name)
      info.size = len(data)
      archive.addfile(info, io.BytesIO(data))
  return path


def wids(root):
  first = [
    ("a.b.jpg", picture(0)),
    ("a.b.json", json.dumps({"sharegpt4v": "long caption", "prompt": "short"})),
    ("c.png", picture(1, form="PNG")),
    ("c.json", json.dumps({"prompt": "only a prompt"})),
  ]
  second = [
    ("c.webp", picture(2, form="WEBP")),
    ("c.json", json.dumps({"sharegpt4v": 17})),
    ("d.bmp", picture(3, form="BMP")),
    ("d.json", "{}"),
  ]
  tar(root / "00.tar", first)
  tar(root / "more/01.tar", second)
  absolute = str((root / "more/01.tar").absolute())
  shards = [{"url": "00.tar", "nsamples": 2}, {"url": absolute, "nsamples": 2, "filesize": 1}]
  index = {"wids_version": 1, "name": "toy", "shardlist": shards}
  put(root / "wids-meta.json", json.dumps(index))
  return root


def wids_without_index(root):
  (wids(root) / "wids-meta.json").unlink()
  (root / "more/01.tar").rename(root / "01.tar")
  return root


SCORES = {
  "clip_similarity_vitb32": 0.25,
  "clip_similarity_vitl14": 0.5,
  "watermark_score": 0.125,
  "aesthetic_score_laion_v2": 5.0,
}


def img2dataset(root):
  members = []
  for number in range(3):
    key = f"00000000{number}"
    about = {"caption": f"caption {number}", "url": "u", "key": key, "status": "success", **SCORES}
    members += [(f"{key}.jpg", picture(number)), (f"{key}.txt", about["caption"])]
    members += [(f"{key}.json", json.dumps(about))] if number else []
  tar(root / "00000.tar", members)
  side = {"key": ["0", "1", "2", "3"], "status": ["success"] * 3 + ["failed_to_download"]}
  pq.write_table(pa.table(side), root / "00000.parquet")
  return root


def img2dataset_parquet(root):
  root.mkdir(parents=True, exist_ok=True)
  table = pa.table(
    {
      "jpg": [picture(n) for n in range(3)] + [None],
      "caption": ["one", "two", "three", "gone"],
      "key": ["0", "1", "2", "3"],
      "status": ["success"] * 3 + ["failed_to_download"],
    }
  )
  pq.write_table(table, root / "00000.parquet", row_group_size=2)
  return root


def coyo(root):
  rows = [
    {"id": n, "url": "u", "text": f"alt text {n}", "clip_sim": 0.5, "image": base64_of(n)}
    for n in range(3)
  ]
  put(root / "part-00000.pkl", pickle.dumps(rows, protocol=5))
  put(root / "part-00000.count", "3")
  return root


def coyo_parquet(root):
  root.mkdir(parents=True, exist_ok=True)
  count = 3
  columns = {"id": list(range(count)), "url": ["u"] * count, "text": ["x", "y", "z"]}
  table = pa.table({**columns, **{name: [score] * count for name, score in SCORES.items()}})
  pq.write_table(table, root / "meta.parquet")
  for number in range(count):
    put(root / "images" / f"{number}.jpg", picture(number))
  return root


def folder(root):
  for number, (name, form) in enumerate(
    (("b.jpg", "JPEG"), ("a/c.webp", "WEBP"), ("d.bmp", "BMP"))
  ):
    put(root / name, picture(number, form=form))
    put((root / name).with_suffix(".txt"), f"picture {number}\n")
  return root


def folder_csv(root):
  folder(root)
  put(
    root / "captions.csv", 'file,caption\r\nb.jpg,"one, ""really"""\r\na/c.webp,two\r\nd.bmp,x\r\n'
  )
  return root


def folder_jsonl(root):
  rows = [{"file": name, "caption": f"it is {name}"} for name in ("b.jpg", "a/c.webp", "d.bmp")]
  folder(root)
  put(root / "captions.jsonl", "\n".join(map(json.dumps, rows)))
  return root


def folder_parquet(root):
  folder(root)
  table = pa.table({"file": ["b.jpg", "a/c.webp", "b.jpg"], "caption": ["one", "two", "three"]})
  pq.write_table(table, root / "captions.parquet")
  return root


def easy_vqa(root):
  """The layout of the package's data folder: questions.json and images of 64 pixels a split."""
  for split in ("train", "test"):
    asked = []
    for number, color in enumerate(("red", "teal", "black")):
      image = Image.new("RGB", (64, 64), (240, 235, 245))
      ImageDraw.Draw(image).ellipse((12, 16, 40, 44), color)
      buffer = io.BytesIO()
      image.save(buffer, format="PNG")
      put(root / split / "images" / f"{number}.png", buffer.getvalue())
      asked += [["what color is the shape?", color, number]]
      asked += [["does the image contain a circle?", "yes", number]]
    put(root / split / "questions.json", json.dumps(asked))
  return root


def emoji(root):
  """Nothing: scenes are made of what comes with the package."""


def tfds(root, name="toy_captions"):
  """A data set that TFDS itself has prepared: coco_captions' features, or ImageNet's."""
  import tensorflow_datasets as tf

  features = {
    "toy_captions": {
      "image": tf.features.Image(encoding_format="jpeg"),
      "image/id": np.int64,
      "captions": tf.features.Sequence({"id": np.int64, "text": tf.features.Text()}),
    },
    "toy_labels": {
      "image": tf.features.Image(encoding_format="jpeg"),
      "label": tf.features.ClassLabel(names=["n01440764", "n01443537"]),
      "file_name": tf.features.Text(),
    },
  }[name]
  about = tf.features.FeaturesDict(features)

  def example(i):
    shown = io.BytesIO(picture(i))  # encoded, which needs no TensorFlow
    if name == "toy_labels":
      return {"image": shown, "label": i % 2, "file_name": f"{i}.JPEG"}
    captions = [{"id": j, "text": f"caption {i} {j}"} for j in range(5)]
    return {"image": shown, "image/id": 100 + i, "captions": captions}

  split = [(i, example(i)) for i in range(4)]
  builder = tf.core.GeneratorBasedBuilder
  with tf.core.registered.skip_registration():  # several modules of tests make it
    made = type(
      "".join(part.title() for part in name.split("_")),
      (builder,),
      {
        "VERSION": tf.core.Version("1.0.0"),
        "__module__": __name__,
        "_info": lambda self: tf.core.DatasetInfo(builder=self, features=about),
        "_split_generators": lambda self, manager: {"train": iter(split)},
        "_generate_examples": lambda self: iter(()),
      },
    )
  made(data_dir=str(root), file_format="array_record").download_and_prepare(
    download_config=tf.download.DownloadConfig(try_download_gcs=False)
  )
  return root / name / "1.0.0"


# format as tested -> (format of the command, builder, options; those that are str are paths below
# the source's folder)
SCENES = dict(scenes=4, videos=3, test_scenes=1, test_videos=1)
EVERY = {
  "llava": ("llava", llava, {"images": "images"}),
  "llava_lines": ("llava", llava_lines, {"images": "images"}),
  "mmc4": ("mmc4", mmc4, {}),
  "mmc4_jsonl": ("mmc4", mmc4_jsonl, {"images": "images"}),
  "vflan": ("vflan", vflan, {}),
  "openvid": ("openvid", openvid, {}),
  "wids": ("wids", wids, {}),
  "wids_without_index": ("wids", wids_without_index, {}),
  "img2dataset": ("img2dataset", img2dataset, {}),
  "img2dataset_parquet": ("img2dataset", img2dataset_parquet, {}),
  "coyo": ("coyo", coyo, {}),
  "coyo_parquet": ("coyo", coyo_parquet, {"images": "images"}),
  "folder": ("folder", folder, {}),
  "folder_csv": ("folder", folder_csv, {}),
  "folder_jsonl": ("folder", folder_jsonl, {}),
  "folder_parquet": ("folder", folder_parquet, {}),
  "folder_tfrecord": ("folder", folder, {}),
  "tfds": ("tfds", tfds, {}),
  "easy_vqa": ("easy-vqa", easy_vqa, {}),
  "emoji": ("emoji", emoji, SCENES),
  "emoji_videos": ("emoji", emoji, SCENES),
}
PARTS = {"easy_vqa": "train", "emoji": "train_scenes", "emoji_videos": "train_videos"}
# What their records are, by kind.
KINDS = {
  **{name: {"sft": 6, "text": 1} for name in ("llava", "llava_lines")},
  "mmc4": {"interleaved": 3},
  "mmc4_jsonl": {"interleaved": 2},
  "vflan": {"sft": 3, "text": 1},
  "openvid": {"t2v": 3},
  "wids": {"t2i": 4},
  "wids_without_index": {"t2i": 4},
  **{name: {"pair": 3} for name in EVERY if name.startswith(("img2", "coyo", "folder"))},
  "tfds": {"pair": 4},
  "easy_vqa": {"i2t": 3},
  "emoji": {"i2t": 4},
  "emoji_videos": {"t2v": 3},
}


def plan(name, root):
  """A format's data set below root, made if it is not there, and the plan to import it."""
  import importlib

  from vilau_jax.cli import data_import

  command, build, options = EVERY[name]
  source = build(root / name)
  module, function = data_import.PLANS[command]
  make = getattr(importlib.import_module(f"vilau_jax.data.formats.{module}"), function)
  options = {k: root / name / v if isinstance(v, str) else v for k, v in options.items()}
  made = make(source, **options)
  return made[PARTS[name]] if name in PARTS else made


def load(name, root, output):
  """Imports a format's data set."""
  from vilau_jax.data import imports

  writer = "tfrecord" if name.endswith("tfrecord") else "array_record"
  return imports.run(plan(name, root), output, writer=writer)
