"""Videos that were cut off are refused wherever the cut is, and whole ones are read."""

import io
import os

import av
import numpy as np
import pytest

from vilau_jax.data import containers, media, mp4_index

FRAMES = np.random.default_rng(0).integers(0, 256, (24, 32, 48, 3), np.uint8)


def video(path, codec="mpeg4", options=None, pix_fmt="yuv420p"):
  """Written by FFmpeg as it writes them; path's suffix says which container."""
  with av.open(str(path), "w", options=options or {}) as container:
    stream = container.add_stream(codec, rate=8)
    stream.width, stream.height, stream.pix_fmt = 48, 32, pix_fmt
    for frame in FRAMES:
      container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
    container.mux(stream.encode(None))
  return path.read_bytes()


KINDS = {
  "mp4": dict(),
  "index first.mp4": dict(options={"movflags": "faststart"}),
  "mov": dict(),
  "avi": dict(),
  "mkv": dict(),
}


@pytest.mark.parametrize("name", KINDS)
def test_wherever_a_video_is_cut_it_is_refused(tmp_path, name):
  path = tmp_path / f"v.{name.split('.')[-1]}"
  data = video(path, **KINDS[name])
  assert media.read_clip(path, 4).total == 24
  for share in (0.05, 0.3, 0.5, 0.7, 0.9, 0.97):
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ValueError, match=r"is cut off|never finished") as error:
      media.read_clip(path, 4)
    assert str(path) in str(error.value)
  path.write_bytes(data[:-1])
  with pytest.raises(ValueError, match="is cut off"):
    media.read_clip(path, 4)


def test_an_index_without_its_frames(tmp_path):
  path = tmp_path / "v.mp4"
  data = video(path, options={"movflags": "faststart"})
  place = data.index(b"mdat") - 4
  path.write_bytes(data[:place])
  with pytest.raises(ValueError, match=r"has an index, but no data"):
    media.read_clip(path, 4)
  # A data box that goes "to the end of the file" does not tell where that was: the index does.
  endless = data[:place] + bytes(4) + data[place + 4 :]
  path.write_bytes(endless)
  assert media.read_clip(path, 4).total == 24
  path.write_bytes(endless[:-900])
  with pytest.raises(ValueError, match="its index has frames up to byte"):
    media.read_clip(path, 4)
  path.write_bytes(data + b"trailing notes that are no box")
  assert media.read_clip(path, 4).total == 24


@pytest.mark.parametrize("name", ["v.mp4", "v.mov", "rgb.mov"])
@pytest.mark.parametrize("options", [{}, {"movflags": "faststart"}])
def test_the_index_is_read_as_ffmpeg_reads_it(tmp_path, name, options):
  path = tmp_path / name  # all raw frames are of one size, which is then not listed
  codec = dict(codec="rawvideo", pix_fmt="rgb24") if name == "rgb.mov" else {}
  data = video(path, options=options, **codec)
  at = data.index(b"moov") - 4
  found = mp4_index.end_of_video(data[at : at + int.from_bytes(data[at : at + 4], "big")])
  with av.open(str(path)) as container:
    packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
  assert found == max(place + size for place, size in packets) <= len(data)


def test_containers_that_state_no_size(tmp_path):
  for name, options in {"v.mp4": {"movflags": "frag_keyframe+empty_moov"}, "v.ts": {}}.items():
    video(tmp_path / name, "mpeg4", options)
    assert media.read_clip(tmp_path / name, 4).total == 24
  live = bytes.fromhex("1a45dfa3 80 18538067 01ffffffffffffff") + b"and so on"
  file = io.BytesIO(live)
  containers.check_whole(file, "live.webm")
  assert file.tell() == 0
  with pytest.raises(ValueError, match="its segment ends at byte 30, the file has 19"):
    containers.check_whole(io.BytesIO(bytes.fromhex("1a45dfa3 80 18538067 94") + bytes(9)), "x")


def test_frames_have_a_limit(tmp_path):
  video(tmp_path / "v.mp4")
  with pytest.raises(ValueError, match=r"v\.mp4 has frames of 48x32 pixels"):
    containers.read(containers.epath.Path(tmp_path / "v.mp4"), lambda total: [0], 48 * 32 - 1)


def test_random_bytes_are_no_reason_to_crash(tmp_path):
  rng = np.random.default_rng(0)
  path = tmp_path / "v.mp4"
  data = video(path)
  for _ in range(20):
    damaged = bytearray(data)
    for place in rng.integers(0, len(data), 5):
      damaged[place] = rng.integers(0, 256)
    path.write_bytes(damaged)
    try:
      clip = media.read_clip(path, 4)
    except ValueError as error:
      assert os.fspath(path) in str(error)
    else:
      assert len(clip.frames) == 4
