"""thousands of prompts from a file: pictures, videos or texts

vilau generate batch --model=DIR --prompts=FILE --output=DIR [--kind=image|video|text] [--num=4]
    FILE has a prompt a line; .jsonl takes {"prompt": .., "name": .., "seed": ..}, and pictures in
    prompts ([{"image": "fox.png"}, "the same in winter"]); .json takes meta_data.json of MJHQ-30K
    and genai_image.json of GenAI-Bench as they are. Writes NAME.png (MP4 for videos) and
    results.jsonl, which says what made each; a record that cannot be taken goes to rejects.jsonl,
    the others go on (exit code 1). Killed or interrupted, the same command goes on and gives the
    same files. Output i has seed --seed + i.
    All devices of this process share the outputs; --tensor=4 lets four share the model, --int8
    halves its weights. Several hosts that write to one disk share the prompts: start the command on
    each with --distributed (as of vilau train), or, if they cannot reach each other, with
    --process_index and --process_count.
"""

from absl import flags

from vilau_jax.cli import given
from vilau_jax.cli.loading import Loading
from vilau_jax.data import media

FLAGS = flags.FlagValues()
_MODEL = flags.DEFINE_string(
  "model", None, "model directory or training workdir (required)", flag_values=FLAGS
)
_PROMPTS = flags.DEFINE_string("prompts", None, "file (required)", flag_values=FLAGS)
_OUTPUT = flags.DEFINE_string("output", None, "directory (required)", flag_values=FLAGS)
_KIND = flags.DEFINE_enum(
  "kind", "image", ["image", "video", "text"], "what to make", flag_values=FLAGS
)
_NUM = flags.DEFINE_integer("num", 1, "outputs a prompt", flag_values=FLAGS)
_SEED = flags.DEFINE_integer("seed", 0, "same seed, same outputs", flag_values=FLAGS)
_CFG = flags.DEFINE_float(
  "cfg_scale", None, "pictures: guidance, 1 is none (default of the model)", flag_values=FLAGS
)
_TEMPERATURE = flags.DEFINE_float(
  "temperature",
  None,
  "0 always takes the most likely (default: the model's; of texts: 0)",
  flag_values=FLAGS,
)
_TOP_K = flags.DEFINE_integer("top_k", None, "draw among so many", flag_values=FLAGS)
_TOP_P = flags.DEFINE_float("top_p", None, "draw among this share", flag_values=FLAGS)
_FRAMES = flags.DEFINE_integer("num_frames", None, "video: frames", flag_values=FLAGS)
_FPS = flags.DEFINE_float("fps", 8, "video: frames a second of the file", flag_values=FLAGS)
_TOKENS = flags.DEFINE_integer("max_new_tokens", 512, "text: longest", flag_values=FLAGS)
_BATCH = flags.DEFINE_integer(
  "batch_size", 16, "outputs at once on each device that has the whole model", flag_values=FLAGS
)
_LOADING = Loading(FLAGS)
_DISTRIBUTED = flags.DEFINE_string(
  "distributed",
  None,
  "several processes: auto (TPU pods, Slurm, GKE) or HOST:PORT,INDEX,COUNT",
  flag_values=FLAGS,
)
_INDEX = flags.DEFINE_integer("process_index", None, "which process this is", flag_values=FLAGS)
_PROCESSES = flags.DEFINE_integer("process_count", None, "processes at work", flag_values=FLAGS)
_PATIENCE = 7 * 24 * 3600  # seconds
# Flags that are for other kinds.
_OTHERS = {
  "image": ("num_frames", "fps", "max_new_tokens"),
  "video": ("max_new_tokens",),
  "text": ("num_frames", "fps"),
}


def main(argv: list[str]) -> int:
  if argv:
    raise ValueError(f"unexpected {argv}; see vilau generate batch --help")
  for flag in (_MODEL, _PROMPTS, _OUTPUT):
    if not flag.value:
      raise ValueError(f"--{flag.name} is missing; see vilau generate batch --help")
  for flag in (_NUM, _BATCH, _TOKENS):
    if flag.value < 1:
      raise ValueError(f"--{flag.name} must be at least 1, got {flag.value}")
  if _FRAMES.value is not None and _FRAMES.value < 1:
    raise ValueError(f"--num_frames must be at least 1, got {_FRAMES.value}")
  media.check_fps(_FPS.value)
  given.none(FLAGS, _OTHERS[_KIND.value], f"--kind={_KIND.value}")
  import jax  # flags first: jax takes seconds

  from vilau_jax import sharding
  from vilau_jax.cli.interrupts import Interrupts
  from vilau_jax.cli.progress import Bar, Rate
  from vilau_jax.cli.train import join
  from vilau_jax.cli.watch import Watch
  from vilau_jax.generate import throughput
  from vilau_jax.generate.gallery import writable
  from vilau_jax.generate.orders import PromptFile

  if _DISTRIBUTED.value:
    given.none(FLAGS, ("process_index", "process_count"), "--distributed says them")
    # The others have their part to finish, which may take long, before anyone leaves.
    join(_DISTRIBUTED.value, shutdown_timeout_seconds=_PATIENCE)
  process = _process(jax.process_index(), jax.process_count())
  writable(_OUTPUT.value)  # before minutes of loading
  outputs = PromptFile.open(_PROMPTS.value).count * _NUM.value
  given.can_be_drawn(_given(), _SEED.value, outputs)
  devices = jax.local_devices()
  several = len(devices) > 1 or _LOADING.tensor > 1  # too many are for make_mesh to refuse
  mesh = sharding.make_mesh(tensor=_LOADING.tensor, devices=devices) if several else None
  model = Watch().load(_MODEL.value, mesh=mesh, quantize=_LOADING.quantize)
  ways = mesh.shape["data"] if mesh else 1
  with Interrupts() as interrupts, Bar(f"{_KIND.value}s") as bar:
    rate = Rate("tokens" if _KIND.value == "text" else "positions")

    def seen(summary) -> None:
      done = summary.found + (summary.drawn or summary.made)
      bar.update(done, summary.total, f"{_KIND.value}s{rate.seen(summary.steps)}")
      if not summary.ended:
        interrupts.check()

    summary = throughput.run(
      model.runtime, _PROMPTS.value, _OUTPUT.value, _settings(model),
      identity=model.identity(), batch_size=_BATCH.value * ways, process=process,
      on_progress=seen,
    )  # fmt: skip
  print(
    f"{_OUTPUT.value}: {summary.made} made, {summary.found} were there, {summary.rejected} records "
    f"rejected{' (see rejects.jsonl)' if summary.rejected else ''}"
  )
  return 1 if summary.rejected else 0


def _process(index: int, count: int) -> tuple[int, int]:
  if (_INDEX.value is None) != (_PROCESSES.value is None):
    raise ValueError("--process_index and --process_count go together")
  if _INDEX.value is not None:
    index, count = _INDEX.value, _PROCESSES.value
  if not 0 <= index < count:
    raise ValueError(f"--process_index must be in 0..{count - 1}, got {index}")
  return index, count


def _given() -> dict[str, float]:
  flags_ = (_CFG, _TEMPERATURE, _TOP_K, _TOP_P)
  return {flag.name: flag.value for flag in flags_ if flag.value is not None}


def _settings(model):
  from vilau_jax.generate import sampling, throughput

  common = dict(kind=_KIND.value, num=_NUM.value, seed=_SEED.value)
  if _KIND.value == "text":
    wish = sampling.Sampling(**{"temperature": 0.0, **_given()})
    return throughput.Settings(**common, sampling=wish, max_new_tokens=_TOKENS.value)
  frames = 1
  if _KIND.value == "video":
    frames = model.runtime.check_frames(_FRAMES.value)
  return throughput.Settings(
    **common, sampling=model.runtime.visual_wish(**_given()), num_frames=frames, fps=_FPS.value
  )
