"""Pictures, videos and archives that are made to harm, or that merely look so."""

import fractions
import io
import json
import pathlib
import pickle
import resource
import struct
import subprocess
import sys
import tarfile
import zlib

import av
import numpy as np
import pytest
from PIL import Image

from vilau_jax.data import containers, media, records
from vilau_jax.data.formats import coyo, pickles, tars, webdataset
from vilau_jax.data.pieces import Reject

NOISE = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)


def encoded(image, form, **options):
  buffer = io.BytesIO()
  image.save(buffer, format=form, **options)
  return buffer.getvalue()


def chunk(kind, data):
  return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


# Pictures


def test_a_text_that_unpacks_to_a_gigabyte_is_refused():
  plain = encoded(Image.fromarray(NOISE), "PNG")
  packer = zlib.compressobj(9)
  bomb = b"".join(packer.compress(bytes(2**20)) for _ in range(1024)) + packer.flush()
  place = plain.index(b"IDAT") - 4
  data = plain[:place] + chunk(b"zTXt", b"a\0\0" + bomb) + plain[place:]
  assert len(data) < 2**21
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  with pytest.raises(ValueError, match="broken or cut-off"):
    media.store(data)
  assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**18  # kB


@pytest.mark.parametrize("geometry", media.GEOMETRIES)
@pytest.mark.parametrize("size", [(100_000, 1), (1, 100_000)])
def test_long_strips_become_squares(geometry, size):
  data = encoded(Image.new("RGB", size, (9, 9, 9)), "PNG")
  square = media.to_square(data, 32, geometry)
  assert square.shape == (32, 32, 3) and set(np.unique(square)) <= {9, 127}
  assert media.store(data)[1:] == size


MODES = {
  "palette": lambda i: encoded(i.quantize(8), "PNG"),
  "palette of a BMP": lambda i: encoded(i.convert("P"), "BMP"),
  "palette with a transparent entry": lambda i: encoded(i.quantize(8), "PNG", transparency=1),
  "1 bit": lambda i: encoded(i.convert("1"), "PNG"),
  "gray with alpha": lambda i: encoded(i.convert("LA"), "PNG"),
  "CMYK JPEG": lambda i: encoded(i.convert("CMYK"), "JPEG"),
  "CMYK TIFF": lambda i: encoded(i.convert("CMYK"), "TIFF"),
  "16-bit PNG": lambda i: encoded(wide(i), "PNG"),
  "16-bit TIFF": lambda i: encoded(wide(i), "TIFF"),
  "float TIFF": lambda i: encoded(Image.fromarray(odd(i)), "TIFF"),
}


def wide(image):
  return Image.fromarray(np.asarray(image.convert("L"), np.uint16) * 257)


def odd(image):
  values = np.asarray(image.convert("L"), np.float32).copy()
  values[0, :3] = np.nan, np.inf, -np.inf
  return values


@pytest.mark.parametrize("name", MODES)
def test_every_mode_is_read_and_stored(name):
  image = Image.fromarray(NOISE)
  data = MODES[name](image)
  kept = media.store(data)
  assert kept[1:] == (32, 24)
  got = np.asarray(media.open_image(kept.data))
  assert got.shape == (24, 32, 3)
  if name.startswith("16-bit"):
    gray = np.asarray(image.convert("L"))
    assert np.abs(got[..., 0].astype(int) - gray).max() <= 1


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_picture_is_taken(form):
  frames = [Image.new("RGB", (20, 10), (shade, 0, 0)) for shade in (250, 120, 0)]
  options = dict(lossless=True) if form == "WEBP" else {}
  data = encoded(frames[0], form, save_all=True, append_images=frames[1:], **options)
  assert (np.asarray(media.open_image(data))[..., 0] == 250).all()
  assert media.store(data)[1:] == (20, 10)


def test_formats_that_nobody_needs_are_not_tried():
  """EPS is a program: Pillow hands it to Ghostscript."""
  program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
  with Image.open(io.BytesIO(program)) as image:
    assert image.format == "EPS"
  with pytest.raises(ValueError, match="not a picture"):
    media.open_image(program)


# Videos


def clip(path, size, frames=6, codec="mpeg2video"):
  with av.open(str(path), "w") as container:
    stream = container.add_stream(codec, rate=8)
    stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
    for shade in range(frames):
      shown = np.full((size[1], size[0], 3), 8 * shade, np.uint8)
      container.mux(stream.encode(av.VideoFrame.from_ndarray(shown, format="rgb24")))
    container.mux(stream.encode(None))
  return path.read_bytes()


def test_a_video_whose_size_changes(tmp_path):
  path = tmp_path / "v.mkv"
  with av.open(str(path), "w") as container:
    stream = container.add_stream("mjpeg", rate=8)
    stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
    for number, size in enumerate([(64, 48)] * 4 + [(96, 64)] * 4):
      codec = av.CodecContext.create("mjpeg", "w")
      codec.width, codec.height, codec.pix_fmt = *size, "yuvj420p"
      codec.time_base = fractions.Fraction(1, 8)
      for packet in codec.encode(av.VideoFrame(*size, "yuvj420p")):
        packet.stream, packet.pts, packet.dts = stream, number, number
        packet.time_base = codec.time_base
        container.mux(packet)
  sizes = {frame.size for frame in media.read_video(path, 8)}
  assert sizes == {(64, 48), (96, 64)}
  with pytest.raises(ValueError, match=r"frames of 96x64 pixels; at most 3072"):
    containers.read(containers.epath.Path(path), lambda total: [0], 64 * 48)


def test_a_video_without_end(tmp_path):
  path = containers.epath.Path(tmp_path / "v.mp4")
  clip(tmp_path / "v.mp4", (32, 32), 30, "mpeg4")
  assert containers.read(path, lambda total: [0], 2**20, max_frames=30).total == 30
  with pytest.raises(ValueError, match="has more than 29 frames"):
    containers.read(path, lambda total: [0], 2**20, max_frames=29)


def test_an_index_that_would_fill_the_memory(tmp_path):
  path = tmp_path / "v.mp4"
  with open(path, "wb") as file:  # a gigabyte of holes
    file.write(struct.pack(">I4s", 16, b"ftyp") + b"isom\0\0\0\0")
    file.write(struct.pack(">I4s", 2**30, b"moov"))
    file.truncate(2**30 + 16)
  with pytest.raises(ValueError, match="an index of 1073741824 bytes"):
    media.read_video(path, 2)


@pytest.mark.parametrize("name", ["v.mp4", "v.m3u8", "v.ffconcat"])
@pytest.mark.parametrize(
  "text",
  [
    "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{}\n#EXT-X-ENDLIST\n",
    "ffconcat version 1.0\nfile {}\n",
  ],
)
def test_a_list_of_other_files_is_no_video(tmp_path, name, text):
  """FFmpeg would open what they name: another file, or an address."""
  clip(tmp_path / "secret.ts", (32, 32))
  for target in ("secret.ts", f"file://{tmp_path}/secret.ts", "http://127.0.0.1:9/a.ts"):
    (tmp_path / name).write_text(text.format(target))
    with pytest.raises(ValueError, match="is not a video that can be read"):
      media.read_video(tmp_path / name, 2)


# Archives, pickles, indexes


def test_a_sparse_member_of_a_tar_is_not_unfolded(tmp_path):
  """512 bytes may say that they are eight gigabytes of zeros."""
  info = tarfile.TarInfo("a.jpg")
  info.type, info.size = tarfile.GNUTYPE_SPARSE, 512
  head = bytearray(info.tobuf(tarfile.GNU_FORMAT))
  head[386:398], head[398:410] = b"%011o\0" % 0, b"%011o\0" % 512
  head[483:495] = b"%011o\0" % (8 * 2**30 - 1)
  head[148:156] = b" " * 8
  head[148:156] = b"%06o\0 " % sum(head)
  (tmp_path / "x.tar").write_bytes(bytes(head) + bytes(512) + bytes(1024))
  with tarfile.open(tmp_path / "x.tar") as archive:
    assert archive.next().size == 8 * 2**30 - 1
  *_, last = tars.samples(webdataset.epath.Path(tmp_path / "x.tar"))
  assert isinstance(last, Reject) and last.damaged and "8589934591 bytes" in last.reason


BOMBS = {
  "a memo of 2**31 places": b"\x80\x02]r\xff\xff\xff\x7f.",
  "a string of 2**40 bytes": b"\x80\x04\x8d" + struct.pack("<Q", 2**40) + b"a.",
  "2**60 tuples": b"\x80\x02" + b"N" + b"2\x86" * 60 + b".",
}


@pytest.mark.parametrize("name", BOMBS)
def test_small_pickles_that_mean_a_lot(name):
  code = (
    "import io, resource, sys\nfrom vilau_jax.data.formats import pickles\n"
    "now = int(open('/proc/self/statm').read().split()[0]) * 4096\n"
    "resource.setrlimit(resource.RLIMIT_AS, (now + 2**28, now + 2**28))\n"
    "try:\n  print(pickles.load_file(io.BytesIO(sys.stdin.buffer.read()), 'x'))\n"
    "except ValueError as error:\n  print('refused:', error)\n"
  )
  root = pathlib.Path(__file__).parents[2]
  run = subprocess.run([sys.executable, "-c", code], input=BOMBS[name], capture_output=True,
                       cwd=root, check=True, timeout=300)  # fmt: skip
  said = run.stdout.decode()
  assert said.startswith("refused:") or said.strip() == "[]", said


SHARED = b"N" + b"2\x86" * 60  # a tuple of two that are one, sixty times: 2**60 to hash
KEYS = {
  "of a dict": b"\x80\x02}" + SHARED + b"Ns.",
  "of a dict at once": b"\x80\x02}(" + SHARED + b"Nu.",
  "of an old dict": b"(" + SHARED + b"Nd.",
  "of a set": b"\x80\x04\x8f(" + SHARED + b"\x90.",
  "of a frozenset": b"\x80\x04(" + SHARED + b"\x91.",
  "of a called set": b"\x80\x02cbuiltins\nset\n]" + SHARED + b"a\x85R.",
  "of an ordered dict": b"\x80\x02ccollections\nOrderedDict\n]" + SHARED + b"N\x86a\x85R.",
}


@pytest.mark.parametrize("name", KEYS)
def test_a_key_that_takes_for_ever_to_hash_is_refused(name):
  with pytest.raises(ValueError, match="is no string, number or bytes"):
    pickles.load_file(io.BytesIO(KEYS[name]), "x")


class Build:
  def __reduce__(self):
    return dict, (), {"a": 1}


def test_a_pickle_cannot_change_what_it_names():
  with pytest.raises(ValueError, match="refused as a pickle"):
    pickles.load_file(io.BytesIO(pickle.dumps(Build())), "x")
  told = b"c_codecs\nencode\n}X\x0c\x00\x00\x00__defaults__\x85sb."
  with pytest.raises(ValueError, match="refused as a pickle"):
    pickles.load_file(io.BytesIO(told), "x")


# Names that lead out of their folder


@pytest.mark.parametrize("name", ["../x.array_record", "/etc/passwd", "a/b", "..", ""])
def test_a_shard_lies_in_its_folder(tmp_path, name):
  with records.Writer(tmp_path / "r", "x") as writer:
    writer.write({"kind": "text", "id": "a", "caption": "b"})
  path = tmp_path / "r" / records.INFO
  content = json.loads(path.read_text())
  content["shards"][0]["file"] = name
  path.write_text(json.dumps(content))
  with pytest.raises(ValueError, match="outside of its folder"):
    records.Records(tmp_path / "r")


@pytest.mark.parametrize(
  "name", ["../out.tar", "/etc/x.tar", "file:///etc/x.tar", "a/../../out.tar"]
)
def test_a_wids_index_names_its_own_folder(tmp_path, name):
  (tmp_path / "in").mkdir()
  for content in (
    {"shardlist": [{"url": name, "nsamples": 1}]},
    {"datasets": [{"source_url": name}]},
    {"datasets": [{"shardlist": [{"url": name, "nsamples": 1}]}]},
  ):
    (tmp_path / "in" / webdataset.INDEX).write_text(json.dumps(content))
    with pytest.raises(ValueError, match="outside of the folder of the index"):
      webdataset.plan_wids(tmp_path / "in")


def test_an_id_is_no_path(tmp_path):
  (tmp_path / "images").mkdir()
  (tmp_path / "secret.jpg").write_bytes(encoded(Image.fromarray(NOISE), "JPEG"))
  for name in ("../secret", str(tmp_path / "secret")):
    with pytest.raises(ValueError, match="no name of a file"):
      coyo._image(str(tmp_path / "images"), {"id": name})
