"""From pictures in a bucket to batches: imported, coded and read with every path on gs://.

The bucket is in memory for fsspec, and served over HTTP to ArrayRecord, which reads gs:// itself; a
real one differs in its network and credentials (extra `gcs`).
"""

import http.server
import re
import threading
import urllib.parse

import fsspec
import numpy as np
import pytest
import sources
from fsspec.implementations.memory import MemoryFileSystem

from vilau_jax.data import codes, forms, imports, inspect, pictures, pipeline, records
from vilau_jax.data.formats import folder
from vilau_jax.data.tokenizer import Tokenizer, TowerTokenizer, record_texts, train_tokenizer


class Bucket(MemoryFileSystem):
  protocol = ("gs", "gcs", "memory")
  store = {}  # noqa: RUF012 (as fsspec has it)
  pseudo_dirs = [""]  # noqa: RUF012

  def __init__(self, *args, finalize_on_close=None, **kwargs):
    super().__init__(*args, **kwargs)

  @classmethod
  def _strip_protocol(cls, path):
    return super()._strip_protocol(path.replace("gs://", "memory://"))


class Handler(http.server.BaseHTTPRequestHandler):
  """Downloads of Cloud Storage's JSON interface, with ranges."""

  protocol_version = "HTTP/1.1"

  def do_GET(self):
    bucket, name = re.search(r"/b/([^/]+)/o/([^?]+)", self.path).groups()
    data = Bucket().cat_file(f"/{bucket}/{urllib.parse.unquote(name)}")
    start, end = 0, len(data)
    if asked := self.headers.get("Range"):
      first, last = asked.removeprefix("bytes=").split("-")
      start = int(first) if first else max(0, end - int(last))
      end = min(end, int(last) + 1) if first and last else end
    self.send_response(206 if asked else 200)
    self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
    self.send_header("Content-Length", str(end - start))
    self.end_headers()
    self.wfile.write(data[start:end])

  def log_message(self, *args):
    pass


@pytest.fixture(scope="module")
def bucket():
  names = ("gs", "gcs")
  known = {name: fsspec.registry.get(name) for name in names}
  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  with pytest.MonkeyPatch.context() as patch:
    address = f"http://127.0.0.1:{server.server_address[1]}"
    patch.setenv("CLOUD_STORAGE_EMULATOR_ENDPOINT", address)
    for name in names:
      fsspec.register_implementation(name, Bucket, clobber=True)
    yield Bucket()
    for name, was in known.items():
      fsspec.register_implementation(name, was or MemoryFileSystem, clobber=True)
  server.shutdown()


def encode(images):
  return np.asarray(images, int).mean((1, 2, 3))[:, None, None] + np.zeros((1, 16, 4), int)


def files(store, name):
  return {p.rsplit("/", 1)[1]: store.cat_file(p) for p in store.ls(f"/bucket/{name}", detail=False)}


def test_everything_lies_in_a_bucket(bucket, tmp_path):
  sources.folder(tmp_path / "pictures")
  for path in (tmp_path / "pictures").rglob("*.*"):
    place = path.relative_to(tmp_path / "pictures")
    bucket.pipe_file(f"/bucket/pictures/{place}", path.read_bytes())
  found = {}
  for root in ("gs://bucket", str(tmp_path)):
    imports.run(folder.plan(f"{root}/pictures"), f"{root}/records", records_per_shard=2)
    for part in (0, 1):  # two processes, one after the other
      coded = codes.add_codes(
        f"{root}/records", f"{root}/codes", encode, "t", image_size=16, process=(part, 2)
      )
    assert records.Records(f"{root}/codes").shards == coded.shards and len(coded.shards) == 2
    found[root] = coded
  for name in ("records", "codes"):
    local = {p.name: p.read_bytes() for p in (tmp_path / name).iterdir()}
    assert files(bucket, name) == local
  assert list(found["gs://bucket"]) == list(found[str(tmp_path)])
  assert "3 pair" in inspect.summary(found["gs://bucket"])

  model = train_tokenizer(record_texts(found["gs://bucket"]), tmp_path / "t.model")
  row = dict(length=128, slots=64, targets=64, window=8)
  batches = {}
  for root in found:
    data = dict(mixture=[dict(path=f"{root}/codes", form="t2i", weight=1)], row=row)
    settings = forms.SequenceSettings(system_prompt="")
    shared = dict(batch_size=2, seed=0, process_index=0, process_count=1)
    words = pipeline.lm_dataset(data, settings, Tokenizer(model), 4, tower_id="t", **shared)
    shown = dict(mixture=[dict(path=f"{root}/records", weight=1)])
    batches[root] = [words[0], words[3]]
    batches[root].append(
      pictures.tower_dataset(shown, TowerTokenizer(model), image_size=16, **shared)[1]
    )
  for one, other in zip(*batches.values()):
    assert one.keys() == other.keys()
    for name in one:
      np.testing.assert_array_equal(one[name], other[name])


def test_tfrecords_and_broken_imports_in_a_bucket(bucket, tmp_path):
  path = sources.folder(tmp_path / "pictures")
  imports.run(folder.plan(path), "gs://bucket/t", writer="tfrecord")
  assert [r["id"] for r in records.Records("gs://bucket/t")] == ["a/c.webp", "b.jpg", "d.bmp"]
  with pytest.raises(ValueError, match=r"gs://bucket/none holds no records"):
    records.Records("gs://bucket/none")
  (name,) = records.Records("gs://bucket/t").shards
  bucket.rm(f"/bucket/t/{name}")
  with pytest.raises(ValueError, match=f"the shard {name} of gs://bucket/t is missing"):
    records.Records("gs://bucket/t")
