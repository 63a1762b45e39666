"""a page to play with the model in a browser

vilau demo --model=DIR [--port=7860]
    chat about pictures and videos, draw, animate, look into the codes and the model. The page is
    for this machine only; --host=0.0.0.0 opens it to the network, to anyone and without a password.
    Needs the extra: pip install -e '.[demo]'.
"""

import importlib.util

from absl import flags

from vilau_jax.cli.loading import Loading

FLAGS = flags.FlagValues()
_MODEL = flags.DEFINE_string(
  "model", None, "model directory, training workdir or VILA-U release (required)", flag_values=FLAGS
)
_HOST = flags.DEFINE_string("host", "127.0.0.1", "address to listen at", flag_values=FLAGS)
_PORT = flags.DEFINE_integer(
  "port", 7860, "0: any that is free", lower_bound=0, upper_bound=65535, flag_values=FLAGS
)
_MEGABYTES = flags.DEFINE_float(
  "max_megabytes", 20, "of an uploaded file", lower_bound=0.001, flag_values=FLAGS
)
_MEGAPIXELS = flags.DEFINE_float(
  "max_megapixels", 16, "of an uploaded picture or frame", lower_bound=0.001, flag_values=FLAGS
)
_OUTPUTS = flags.DEFINE_integer(
  "max_outputs", 16, "pictures or videos of one request", lower_bound=1, flag_values=FLAGS
)
_QUEUE = flags.DEFINE_integer(
  "max_waiting", 20, "visitors in the queue", lower_bound=1, flag_values=FLAGS
)
_LOADING = Loading(FLAGS)


def main(argv: list[str]) -> int:
  if argv:
    raise ValueError(f"unexpected {argv}")
  if not _MODEL.value:
    raise ValueError("--model=DIR is missing; see vilau demo --help")
  if importlib.util.find_spec("gradio") is None:
    raise ValueError("the page needs gradio: pip install -e '.[demo]'")
  from vilau_jax import api  # flags first: jax takes seconds
  from vilau_jax.cli.compile_cache import use_compile_cache
  from vilau_jax.demo import page
  from vilau_jax.demo.studio import Studio
  from vilau_jax.demo.uploads import Limits

  use_compile_cache()
  limits = Limits(megabytes=_MEGABYTES.value, megapixels=_MEGAPIXELS.value, outputs=_OUTPUTS.value)
  print(f"loading {_MODEL.value}", flush=True)
  studio = Studio(api.load(_MODEL.value, **_LOADING.arguments()), limits)
  try:
    page.serve(studio, host=_HOST.value, port=_PORT.value, waiting=_QUEUE.value)
  except OSError as error:
    raise ValueError(
      f"cannot listen at {_HOST.value}:{_PORT.value}, which may be taken; choose another --port "
      f"({error})"
    ) from error
  return 0
