import io
import pathlib
import struct
import zlib

import av
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from vilau_jax.data import media

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden" / "a" / "01_preprocess.npz")
CASES = [
  (name.rsplit("_", 1)[0], name.rsplit("_", 1)[1]) for name in GOLDEN if not name.endswith("_u8")
]


@pytest.mark.parametrize(("picture", "path"), CASES)
def test_geometries_are_bit_equal_to_the_reference(picture, path):
  geometry = {"gen": "crop"}.get(path, path)
  got = media.to_square(GOLDEN[f"{picture}_u8"], 32, geometry)
  assert got.dtype == np.uint8
  want = GOLDEN[f"{picture}_{path}"].transpose(1, 2, 0)
  np.testing.assert_array_equal(got, np.round((want * 0.5 + 0.5) * 255).astype(np.uint8))
  np.testing.assert_allclose((got / 255 - 0.5) / 0.5, want, rtol=1e-5, atol=1e-5)


def png(array, **kwargs):
  buffer = io.BytesIO()
  Image.fromarray(array, **kwargs).save(buffer, format="PNG")
  return buffer.getvalue()


def test_every_source_and_mode_becomes_rgb(tmp_path):
  color = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
  path = tmp_path / "a.png"
  path.write_bytes(png(color))
  for source in (color, png(color), path, str(path), Image.fromarray(color)):
    np.testing.assert_array_equal(np.asarray(media.open_image(source)), color)
  gray = color[..., 0]
  for source in (gray, gray[..., None], png(gray)):
    np.testing.assert_array_equal(np.asarray(media.open_image(source)), np.stack([gray] * 3, -1))
  deep = media.open_image(png(gray.astype(np.uint16) * 257))
  assert np.abs(np.asarray(deep)[..., 0].astype(int) - gray).max() <= 1
  clear = np.concatenate([color, np.zeros((5, 7, 1), np.uint8)], -1)
  assert (np.asarray(media.open_image(png(clear))) == 255).all()
  palette = Image.fromarray(color).convert("P")
  assert media.open_image(palette).mode == "RGB"
  assert media.open_image(Image.fromarray(color).convert("CMYK")).mode == "RGB"


def test_one_pixel_becomes_a_square():
  got = media.to_square(np.full((1, 1, 3), 200, np.uint8), 8)
  assert (got == 200).all() and got.shape == (8, 8, 3)


def huge_png(width, height):
  """A picture whose header promises more pixels than it has."""
  chunks = b""
  header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
  for name, data in ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000)))):
    body = name + data
    chunks += struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))
  return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.mark.parametrize(
  ("source", "problem"),
  [
    (b"no picture", "not a picture"),
    (b"", "not a picture"),
    (huge_png(20000, 20000), "400000000 pixels"),
    (huge_png(8200, 8200), "8200x8200"),
    ("/nowhere/a.png", "no image file at /nowhere/a.png"),
    (np.zeros((4, 4, 3), np.float32), "must be uint8"),
    (np.zeros((4, 4, 2), np.uint8), r"\[H,W,3\]"),
    (np.zeros((0, 4, 3), np.uint8), "empty"),
    (17, "not a int"),
  ],
)
def test_bad_pictures_are_refused(source, problem):
  with pytest.raises(ValueError, match=problem):
    media.open_image(source)


def test_cut_off_pictures_are_refused():
  whole = png(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
  with pytest.raises(ValueError, match="broken or cut-off"):
    media.open_image(whole[: len(whole) // 2])
  jpeg = io.BytesIO()
  Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(jpeg, format="JPEG")
  with pytest.raises(ValueError, match="broken or cut-off"):
    media.open_image(jpeg.getvalue()[:-40])


def test_pictures_come_in_many_wrappings():
  pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
  for source in (jnp.asarray(pixels), bytearray(png(pixels)), memoryview(png(pixels))):
    np.testing.assert_array_equal(np.asarray(media.open_image(source)), pixels)


def test_gray_of_16_bits_keeps_its_shades_beside_a_transparent_one():
  values = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
  plain, marked = io.BytesIO(), io.BytesIO()
  Image.fromarray(values).save(plain, format="PNG")
  Image.fromarray(values).save(marked, format="PNG", transparency=3)
  shades = [np.asarray(media.open_image(b.getvalue())) for b in (plain, marked)]
  np.testing.assert_array_equal(*shades)


def test_videos_stand_as_they_were_held(tmp_path):
  frames = np.zeros((3, 32, 64, 3), np.uint8)
  frames[:, :, :32] = 255  # white on the left
  data = bytearray(pathlib.Path(media.write_video(frames, tmp_path / "a.mp4")).read_bytes())
  at = data.index(b"tkhd") + 4 + 40  # the matrix: a quarter turn clockwise
  data[at : at + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
  (tmp_path / "turned.mp4").write_bytes(data)
  image = np.asarray(media.read_clip(tmp_path / "turned.mp4", 1).frames[0])
  assert image.shape == (64, 32, 3)
  assert image[:24].mean() > 200 and image[40:].mean() < 50  # white on top now


def test_orientation_tag_is_ignored():
  image = Image.fromarray(np.zeros((4, 9, 3), np.uint8))
  exif = image.getexif()
  exif[0x0112] = 6
  buffer = io.BytesIO()
  image.save(buffer, format="JPEG", exif=exif)
  assert media.open_image(buffer.getvalue()).size == (9, 4)


def test_random_crop_keeps_pixels_and_mirrors_half():
  rng = np.random.default_rng(0)
  picture = np.arange(8 * 20 * 3, dtype=np.uint8).reshape(8, 20, 3)
  places = [picture[:, left : left + 8] for left in range(13)]
  seen = {True: set(), False: set()}
  for _ in range(300):
    found = media.random_crop(picture, 8, rng)
    (left, mirrored), = [
      (i, m) for i, p in enumerate(places) for m in (False, True)
      if np.array_equal(found, p[:, ::-1] if m else p)
    ]  # fmt: skip
    seen[mirrored].add(left)
  assert seen[True] == seen[False] == set(range(13))  # false alarm: below 26 * (25/26)**300 = 2e-4


def test_random_square_keeps_pixels_or_squeezes():
  rng = np.random.default_rng(0)
  picture = np.zeros((8, 16, 3), np.uint8)
  picture[:, :8] = 255
  means = {round(float(media.random_square(picture, 8, rng).mean())) for _ in range(40)}
  assert len(means) > 3
  assert media.random_square(picture[:, :8], 8, rng).shape == (8, 8, 3)


def test_frames_are_spread_evenly():
  assert media.frame_indices(7, 3) == [0, 3, 6]
  assert media.frame_indices(10, 4) == [0, 3, 6, 9]
  assert media.frame_indices(1, 3) == [0, 0, 0]
  assert media.frame_indices(6, 3) == [0, 2, 5]  # 2.5 rounds half to even


def test_video_files_and_folders(tmp_path, monkeypatch):
  frames = np.zeros((9, 15, 15, 3), np.uint8)
  for i in range(9):
    frames[i] = 25 * i
  path = media.write_video(frames, tmp_path / "out" / "a.mp4", fps=4)
  with monkeypatch.context() as patch:  # never another codec in silence
    patch.setattr("av.codecs_available", {"mpeg4"})
    with pytest.raises(ValueError, match=r"cannot write H\.264"):
      media.write_video(frames, tmp_path / "b.mp4")
  got = media.read_video(path, 3)
  assert [round(np.asarray(f).mean() / 25) for f in got] == [0, 4, 8]
  for i, frame in enumerate(frames):
    media.write_image(frame, tmp_path / "frames" / f"{i:03}.png")
  got = media.read_video(tmp_path / "frames", 3)
  np.testing.assert_array_equal(np.stack(got), frames[[0, 4, 8]])
  assert len(media.read_video(list(frames), 12)) == 12
  with Image.open(media.write_gif(frames, tmp_path / "a.gif")) as gif:
    assert gif.n_frames == 9


@pytest.mark.parametrize("source", ["missing", "folder", "text.mp4", []])
def test_bad_videos_are_refused(tmp_path, source):
  (tmp_path / "folder").mkdir()
  (tmp_path / "text.mp4").write_text("no video")
  with pytest.raises(ValueError, match=r"no video|no pictures|not a video|at least one frame"):
    media.read_video(tmp_path / source if isinstance(source, str) else source, 2)


def test_written_pictures_carry_metadata(tmp_path):
  path = media.write_image(np.zeros((4, 4, 3), np.uint8), tmp_path / "a.png", {"prompt": "a fox ü"})
  with Image.open(path) as image:
    assert image.text["prompt"] == "a fox ü"
  assert list(tmp_path.iterdir()) == [path]


def test_contact_sheet_shows_every_picture():
  pictures = [np.full((10, 10 + i, 3), 20 * i, np.uint8) for i in range(5)]
  sheet = media.contact_sheet(pictures, 3, ["a fox"] * 5, scale=2, gap=2)
  assert sheet.shape[1] == 3 * (28 + 2) + 2
  assert all((sheet == 20 * i).all(-1).sum() >= 400 for i in range(5))
  with pytest.raises(ValueError, match="2 captions for 5 pictures"):
    media.contact_sheet(pictures, 3, ["a", "b"])
  with pytest.raises(ValueError, match="needs pictures"):
    media.contact_sheet([], 3)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_any_cut_jpeg_is_refused_and_whole_ones_stay_as_they_are(mode):
  noise = np.random.default_rng(0).integers(0, 256, (40, 56, 4), np.uint8)
  picture = Image.fromarray(noise[..., :3]).convert(mode)
  buffer = io.BytesIO()
  picture.save(buffer, format="JPEG", quality=80, progressive=mode == "RGB")
  data = buffer.getvalue()
  assert media.store(data) == (data, 56, 40)
  for share in (0.3, 0.6, 0.9):
    with pytest.raises(ValueError, match="broken or cut-off"):
      media.store(data[: int(len(data) * share)])


@pytest.mark.parametrize("fps", [12.5, 0.5, 1.5, 24])
def test_a_video_has_the_rate_that_was_asked(tmp_path, fps):
  path = media.write_video(np.zeros((3, 16, 16, 3), np.uint8), tmp_path / "a.mp4", fps)
  with av.open(str(path)) as container:
    assert float(container.streams.video[0].average_rate) == fps


@pytest.mark.parametrize("fps", [0, -1, 1e-4, 1e9, float("nan")])
def test_a_rate_that_no_video_has_is_refused(tmp_path, fps):
  with pytest.raises(ValueError, match="frames a second"):
    media.write_video(np.zeros((1, 16, 16, 3), np.uint8), tmp_path / "a.mp4", fps)
