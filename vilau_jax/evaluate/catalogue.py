"""The benchmarks by the names that are typed, by table of the paper."""

import difflib
import importlib
import os
import pathlib

from vilau_jax.evaluate.task import Options, Task

# name -> (module below vilau_jax.evaluate, class, one line for --help)
TASKS = {
  "reconstruction": ("benchmarks.reconstruction", "Reconstruction",
                     "table 1: FID, PSNR, SSIM, LPIPS, codebook use on a folder or TFDS set"),
  "imagenet": ("benchmarks.imagenet", "Imagenet", "table 1: zero-shot top-1, SigLIP's protocol"),
  "vqav2": ("benchmarks.vqav2", "Vqav2", "table 2: VQAv2 val; submissions for the test splits"),
  "gqa": ("benchmarks.gqa", "Gqa", "table 2: GQA testdev-balanced"),
  "textvqa": ("benchmarks.textvqa", "Textvqa", "table 2: TextVQA val"),
  "pope": ("benchmarks.pope", "Pope", "table 2: POPE random, popular, adversarial"),
  "mme": ("benchmarks.mme", "Mme", "table 2: MME perception and cognition"),
  "seedbench": ("benchmarks.seedbench", "Seedbench", "table 2: SEED-Bench-1"),
  "mmvet": ("benchmarks.mmvet", "Mmvet", "table 2: MM-Vet; needs a judge"),
  "msvd-qa": ("benchmarks.video_qa", "MsvdQa", "table 3; needs a judge"),
  "msrvtt-qa": ("benchmarks.video_qa", "MsrvttQa", "table 3; needs a judge"),
  "tgif-qa": ("benchmarks.video_qa", "TgifQa", "table 3; needs a judge"),
  "activitynet-qa": ("benchmarks.video_qa", "ActivitynetQa", "table 3; needs a judge"),
  "mjhq-30k": ("benchmarks.mjhq", "Mjhq", "tables 4 and 8: FID, by category too"),
  "genai-bench": ("benchmarks.genai_bench", "GenaiBench", "table 5: VQAScore by skill"),
  "vbench": ("benchmarks.vbench", "Vbench", "table 6: videos for VBench, and its total scores"),
  "cfg-sweep": ("benchmarks.mjhq", "CfgSweep", "table 9: MJHQ-30K FID by guidance"),
  "easy-vqa": ("benchmarks.builtin", "EasyVqa", "easy-VQA's published test questions; no download"),
  "scenes": ("benchmarks.builtin", "Scenes", "questions about the quickstart's held-out scenes"),
}  # fmt: skip


WITHOUT_DATA = ("easy-vqa",)  # they find their own


def create(name: str, data: str | os.PathLike | None, options: Options) -> Task:
  """The task `name`.

  Raises:
    ValueError: for an unknown name (suggests the nearest), data that is not there, or options the
      task can't use.
  """
  if name not in TASKS:
    near = difflib.get_close_matches(name, TASKS, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise ValueError(f"unknown task {name!r}{hint}; tasks: {', '.join(TASKS)}")
  if data is None and name not in WITHOUT_DATA:
    raise ValueError(f"{name} needs --data=DIR, the benchmark's directory")
  if data is not None and not pathlib.Path(data).exists():
    raise ValueError(f"no data at {data}")
  module, cls, _ = TASKS[name]
  return getattr(importlib.import_module(f"vilau_jax.evaluate.{module}"), cls)(
    None if data is None else pathlib.Path(data), options
  )
