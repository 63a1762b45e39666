"""FID: resizers, statistics and distances against golden numbers, and the network and the distance
against pytorch-fid, clean-fid and torch-fidelity themselves (extra `parity-fid`, which `bash
launch/live.sh` installs)."""

import json
import pathlib

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vilau_jax.evaluate import fid, picture_metrics
from vilau_jax.models import inception

GOLDEN = json.loads(
  (pathlib.Path(__file__).parent.parent / "golden" / "eval" / "fid.json").read_text()
)
MODES = {
  "clean": "clean_pil_bicubic_float",
  "pytorch_fid": "pytorch_fid_bilinear_align_corners_false_x255",
  "tf1": "tf1_bilinear_torch_fidelity_and_adm",
}


def formula(height, width):
  y, x, c = np.mgrid[:height, :width, :3]
  return ((17 * y + 31 * x + 97 * c) % 256).astype(np.uint8)


def features(n, dim, seed):
  i, j = np.mgrid[:n, :dim].astype(float)
  return np.sin(0.7 * i * (j + 1) + seed) + 0.1 * np.cos(1.3 * i + j * seed)


def statistics(values, *cuts):
  found = fid.Statistics()
  for part in np.split(values, cuts):
    found.add(part)
  return found


@pytest.mark.parametrize("case", GOLDEN["frechet_from_statistics"], ids=lambda c: c["name"])
def test_distance_of_statistics(case):
  got = fid.frechet_distance(*(np.array(case[k]) for k in ("mu1", "sigma1", "mu2", "sigma2")))
  assert got == pytest.approx(case["torch_fidelity"], abs=1e-8)


@pytest.mark.parametrize("case", GOLDEN["frechet_from_features"], ids=lambda c: str(c["n"]))
def test_distance_of_features(case):
  n, dim = case["n"], case["dim"]
  first, second = (statistics(features(n, dim, seed), n // 3) for seed in (0, 1))
  np.testing.assert_allclose(first.mean, case["mu1"], atol=5e-9)
  for side, name in ((first, "trace_sigma1"), (second, "trace_sigma2")):
    assert np.trace(side.covariance) == pytest.approx(case[name], abs=5e-9)
  # Three pictures leave rank two, where the packages' matrix roots lose digits: 50 digits of
  # mpmath give 0.765599544822025, the packages 0.76559953.
  if n == 3:
    assert fid.fid(first, second) == pytest.approx(0.765599544822025, rel=1e-12)
    assert fid.fid(first, second) == pytest.approx(case["pytorch_fid"], rel=1e-6)
  else:
    assert fid.fid(first, second) == pytest.approx(case["pytorch_fid"], abs=5e-9)


def test_kernel_distance():
  case = GOLDEN["kid_full_subset"]
  pair = [features(case["n"], case["dim"], seed) for seed in (0, 1)]
  assert fid.kid(*pair) == pytest.approx(case["value"], abs=5e-9)


@given(st.integers(2, 40), st.integers(1, 6), st.floats(-1e4, 1e4), st.data())
@settings(max_examples=40, deadline=None)
def test_statistics_do_not_depend_on_the_parts(n, dim, offset, data):
  values = np.random.default_rng(n * dim).normal(size=(n, dim)) + offset
  cuts = sorted(data.draw(st.lists(st.integers(0, n), max_size=4)))
  found = statistics(values, *cuts)
  np.testing.assert_allclose(found.mean, values.mean(0), rtol=1e-12, atol=1e-12)
  want = np.atleast_2d(np.cov(values, rowvar=False))
  np.testing.assert_allclose(found.covariance, want, rtol=1e-8, atol=1e-10)


def test_statistics_refuse_what_makes_no_sense():
  with pytest.raises(ValueError, match="at least two pictures"):
    _ = statistics(np.zeros((1, 3))).covariance
  with pytest.raises(ValueError, match="not finite"):
    statistics(np.array([[np.nan]]))
  with pytest.raises(ValueError, match="of one width"):
    statistics(np.zeros((2, 3))).add(np.zeros((2, 4)))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", ["upscale_12x20", "downscale_400x512"])
def test_resizing(case, mode):
  want = GOLDEN["resize_to_299"][case][MODES[mode]]
  got = fid.resize(formula(*map(int, case.split("_")[1].split("x"))), mode)
  assert got.dtype == np.float32 and list(got.shape) == want["shape"]
  assert got.astype(float).mean() == pytest.approx(want["mean"], abs=1e-4)
  assert got.astype(float).std() == pytest.approx(want["std"], abs=1e-4)
  for place, pixel in want["px"].items():
    y, x = map(int, place.split(","))
    np.testing.assert_allclose(got[y, x], pixel, atol=2e-4)


def test_scaling_for_the_network():
  image = np.full((299, 299, 3), 255, np.uint8)
  assert fid.to_network(image, "pytorch_fid").max() == 1
  assert fid.to_network(image, "clean").max() == np.float32(127 / 128)
  with pytest.raises(ValueError, match="resize must be one of"):
    fid.resize(image, "lanczos")


def test_crops_of_the_protocols():
  image = formula(400, 512)
  for protocol, key in (
    ("rqvae", "rqvae_Resize256_CenterCrop256_(torchvision PIL bilinear)"),
    ("squash", "squash_PIL_default_bicubic_256"),
  ):
    want, got = GOLDEN["eval_crop_400x512"][key], picture_metrics.crop(image, 256, protocol)
    assert list(got.shape) == want["shape"] and int(got.sum()) == want["sum"]
    for place, pixel in want["px"].items():
      y, x = map(int, place.split(","))
      assert got[y, x].tolist() == pixel
  assert picture_metrics.crop(formula(900, 700), 128, "adm").shape == (128, 128, 3)
  assert picture_metrics.crop(formula(30, 90), 64, "adm").shape == (64, 64, 3)
  with pytest.raises(ValueError, match="protocol must be one of"):
    picture_metrics.crop(image, 256, "other")


def test_psnr_and_ssim():
  rng = np.random.default_rng(0)
  first = rng.random((2, 14, 14, 3)).astype(np.float32)
  second = np.clip(first + rng.normal(0, 0.1, first.shape), 0, 1).astype(np.float32)
  error = np.mean((first[0].astype(float) - second[0]) ** 2)
  assert picture_metrics.psnr(first, second)[0] == pytest.approx(10 * np.log10(1 / error))
  assert np.isinf(picture_metrics.psnr(first, first)).all()
  np.testing.assert_allclose(picture_metrics.ssim(first, first), 1)
  # The definition, window by window.
  g = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
  g = np.outer(g, g) / g.sum() ** 2
  values = []
  for y, x, c in np.ndindex(4, 4, 3):
    a, b = (p[1, y : y + 11, x : x + 11, c].astype(float) for p in (first, second))
    ma, mb = (g * a).sum(), (g * b).sum()
    va, vb = (g * (a - ma) ** 2).sum(), (g * (b - mb) ** 2).sum()
    cov = (g * (a - ma) * (b - mb)).sum()
    up = (2 * ma * mb + 1e-4) * (2 * cov + 9e-4)
    values.append(up / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4)))
  assert picture_metrics.ssim(first, second)[1] == pytest.approx(np.mean(values))
  with pytest.raises(ValueError, match="window has 11 pixels"):
    picture_metrics.ssim(first[:, :8, :8], second[:, :8, :8])


# Against the packages themselves


def random_state(classes):
  """Weights of torchvision's Inception with running statistics that are not trivial."""
  torch = pytest.importorskip("torch")
  torchvision = pytest.importorskip("torchvision")
  torch.manual_seed(0)
  net = torchvision.models.inception_v3(
    weights=None, num_classes=classes, aux_logits=classes == 1000, init_weights=False
  )
  state = net.state_dict()
  for name, value in state.items():
    if name.endswith("running_var"):
      value.uniform_(0.5, 1.5)
    elif name.endswith(("running_mean", "bn.bias")):
      value.normal_(0, 0.1)
    elif name.endswith("conv.weight"):
      value.normal_(0, (2 / value[0].numel()) ** 0.5)
  return net, state


def test_features_equal_pytorch_fid(monkeypatch, tmp_path):
  torch = pytest.importorskip("torch")
  theirs = pytest.importorskip("pytorch_fid.inception")
  _, state = random_state(1008)
  monkeypatch.setattr(theirs, "load_state_dict_from_url", lambda *args, **kwargs: state)
  torch.save(state, tmp_path / "inception.pth")
  ours = inception.load_inception(tmp_path / "inception.pth")
  assert ours.variant == "fid"
  net = theirs.InceptionV3([3]).eval()
  images = np.stack([formula(80, 60), np.asarray(PIL.Image.fromarray(formula(80, 60)).rotate(90))])
  with torch.no_grad():
    floats = torch.from_numpy(images.transpose(0, 3, 1, 2) / np.float32(255))
    want = net(floats)[0][:, :, 0, 0].numpy()
  got = fid.features(ours, images, "pytorch_fid")
  assert got.shape == (2, inception.WIDTH) and np.abs(want).max() > 0.1
  np.testing.assert_allclose(got, want, atol=1e-4, rtol=1e-4)
  one = fid.features(ours, images[1:], "pytorch_fid", batch=8)
  np.testing.assert_allclose(one, got[1:], atol=1e-5)


def test_features_equal_torchvision(tmp_path):
  torch = pytest.importorskip("torch")
  save_file = pytest.importorskip("safetensors.torch").save_file
  net, state = random_state(1000)
  save_file(state, tmp_path / "inception.safetensors")
  ours = inception.load_inception(tmp_path / "inception.safetensors")
  assert ours.variant == "torchvision"
  net.fc = torch.nn.Identity()
  image = np.random.default_rng(0).uniform(-1, 1, (1, 107, 107, 3)).astype(np.float32)
  with torch.no_grad():
    want = net.eval()(torch.from_numpy(image.transpose(0, 3, 1, 2))).numpy()
  np.testing.assert_allclose(np.asarray(ours(image)), want, atol=1e-4, rtol=1e-4)


def test_distance_equals_pytorch_fid():
  theirs = pytest.importorskip("pytorch_fid.fid_score")
  rng = np.random.default_rng(0)
  first = rng.gamma(0.5, 1.0, (300, 64))
  second = rng.gamma(0.6, 1.0, (280, 64)) @ rng.normal(0, 0.2, (64, 64))
  want = theirs.calculate_frechet_distance(
    first.mean(0), np.cov(first, rowvar=False), second.mean(0), np.cov(second, rowvar=False)
  )
  got = fid.fid(statistics(first, 100, 101), statistics(second, 7))
  assert got == pytest.approx(float(want), rel=1e-6)


def test_resizing_equals_clean_fid_and_torch_fidelity():
  torch = pytest.importorskip("torch")
  clean = pytest.importorskip("cleanfid.resize")
  fidelity = pytest.importorskip("torch_fidelity.interpolate_compat_tensorflow")
  for image in (formula(37, 53), formula(400, 311)):
    want = clean.make_resizer("PIL", False, "bicubic", (299, 299))(image)
    np.testing.assert_allclose(fid.resize(image, "clean"), want, atol=1e-4)
    tensor = torch.from_numpy(image.transpose(2, 0, 1)[None]).float()
    want = fidelity.interpolate_bilinear_2d_like_tensorflow1x(
      tensor, (299, 299), align_corners=False
    )
    want = want[0].numpy().transpose(1, 2, 0)
    np.testing.assert_allclose(fid.resize(image, "tf1"), want, atol=1e-3)


def test_whole_folders_equal_clean_fid(monkeypatch, tmp_path):
  torch = pytest.importorskip("torch")
  clean = pytest.importorskip("cleanfid.fid")
  theirs = pytest.importorskip("pytorch_fid.inception")
  dims = 4  # of 2048: the root of a large singular matrix loses digits, and takes a minute
  _, state = random_state(1008)
  monkeypatch.setattr(theirs, "load_state_dict_from_url", lambda *args, **kwargs: state)
  net = theirs.InceptionV3([3], resize_input=False, normalize_input=False).eval()
  torch.save(state, tmp_path / "inception.pth")
  ours = inception.load_inception(tmp_path / "inception.pth")
  rng, folders = np.random.default_rng(0), []
  for name in ("drawn", "true"):
    folders.append(tmp_path / name)
    for i in range(8):
      picture = formula(40 + 9 * i, 60) ^ rng.integers(0, 64, (40 + 9 * i, 60, 3), np.uint8)
      path = folders[-1] / "ab"[i % 2] / f"{i}.png"
      path.parent.mkdir(parents=True, exist_ok=True)
      PIL.Image.fromarray(picture).save(path)
  # The package scales pixels inside of the network that it would download, and takes means in the
  # numbers that features are: in float32 they'd cost more than the 1e-6 asserted below.
  extract = lambda batch: net((batch - 128) / 128)[0][:, :dims, 0, 0].double()  # noqa: E731
  how = dict(mode="clean", num_workers=0, device=torch.device("cpu"), verbose=False)
  sides = []
  for folder in folders:
    want = clean.get_folder_features(str(folder), extract, **how)
    pictures = (np.asarray(PIL.Image.open(path)) for path in sorted(folder.rglob("*.png")))
    got = fid.features(ours, pictures, "clean")[:, :dims]
    np.testing.assert_allclose(got, want, atol=1e-4, rtol=1e-4)
    sides.append((statistics(got, 3), statistics(want, 5)))
  want = clean.compute_fid(*map(str, folders), custom_feat_extractor=extract, **how)
  assert fid.fid(sides[0][1], sides[1][1]) == pytest.approx(want, rel=1e-6)
  assert fid.fid(sides[0][0], sides[1][0]) == pytest.approx(want, rel=1e-3)


def test_weights_that_are_none_are_refused(tmp_path):
  with pytest.raises(ValueError, match="no Inception weights at"):
    inception.load_inception(tmp_path / "none.pth")
  (tmp_path / "x.bin").write_bytes(b"")
  with pytest.raises(ValueError, match=r"must be a \.pth, \.pt or \.safetensors"):
    inception.load_inception(tmp_path / "x.bin")
  with pytest.raises(ValueError, match="1008 or 1000; here: 3"):
    inception.inception_from({"fc.bias": np.zeros(3)}, "x")
  with pytest.raises(ValueError, match="not Inception-v3 weights; missing"):
    inception.inception_from({"fc.bias": np.zeros(1008)}, "x")
