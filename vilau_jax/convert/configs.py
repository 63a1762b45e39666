"""Reading the JSON configs of a checkpoint: every key is honoured, fixed, neutral, or refused."""

import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from vilau_jax.convert.sources import read_json, shorten

# Keys that Hugging Face writes into every config and that change no function here: generation
# defaults, bookkeeping, outputs of its own classes.
NEUTRAL = frozenset(
  """_name_or_path architectures auto_map bad_words_ids begin_suppress_tokens bos_token_id
  chunk_size_feed_forward decoder_start_token_id diversity_penalty do_sample dtype early_stopping
  encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty finetuning_task
  forced_bos_token_id forced_eos_token_id id2label initializer_factor initializer_range label2id
  length_penalty max_length min_length model_type no_repeat_ngram_size num_beam_groups num_beams
  num_return_sequences output_attentions output_hidden_states output_scores pad_token_id prefix
  problem_type remove_invalid_values repetition_penalty return_dict return_dict_in_generate
  sep_token_id suppress_tokens task_specific_params temperature tokenizer_class top_k top_p
  torch_dtype transformers_version typical_p use_cache attn_implementation _attn_implementation
  _attn_implementation_autoset _attn_implementation_internal _commit_hash""".split()
)
_ABSENT = object()


class Fields:
  """One object of a config file. `take` and `fixed` mark keys as known; `done` refuses the others.

  Attributes:
    file: the config file, and `path` the keys that lead to this object, for messages.
  """

  def __init__(self, file: pathlib.Path, values: Any, path: str = "", neutral: Iterable[str] = ()):
    self.file, self.path = file, path
    if not isinstance(values, Mapping):
      raise ValueError(f"{file}: {path.rstrip('.') or 'it'} must be an object, got {values!r:.200}")
    self._values = dict(values)
    self._known = set(NEUTRAL) | set(neutral)

  @classmethod
  def of_file(cls, file: pathlib.Path, neutral: Iterable[str] = ()) -> "Fields":
    return cls(file, read_json(file), neutral=neutral)

  def __contains__(self, key: str) -> bool:
    return self._values.get(key) is not None

  def take(self, key: str, kind: type | tuple[type, ...], default: Any = _ABSENT) -> Any:
    """A value that the importer honours; null counts as absent.

    Raises:
      ValueError: if it is absent without a default, or of another type.
    """
    self._known.add(key)
    value = self._values.get(key)
    if value is None:
      if default is _ABSENT:
        raise ValueError(f"{self.file}: {self.path}{key} is missing")
      return default
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if float in kinds and isinstance(value, int) and not isinstance(value, bool):
      value = float(value)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
      names = " or ".join(k.__name__ for k in kinds)
      raise ValueError(f"{self.file}: {self.path}{key} must be {names}, got {value!r:.200}")
    return value

  def size(self, key: str, default: Any = _ABSENT, least: int = 1) -> int:
    """An integer of at least `least`."""
    value = self.take(key, int, default)
    if value is not None and value < least:
      what = "positive" if least == 1 else f"at least {least}"
      raise ValueError(f"{self.file}: {self.path}{key} must be {what}, got {value}")
    return value

  def sizes(self, key: str) -> tuple[int, ...]:
    """A list of positive integers."""
    values = self.take(key, (list, tuple))
    if not all(isinstance(v, int) and not isinstance(v, bool) and v > 0 for v in values):
      raise ValueError(
        f"{self.file}: {self.path}{key} must be positive integers, got {values!r:.200}"
      )
    return tuple(values)

  def fixed(self, key: str, *allowed: Any) -> None:
    """A value that must be one of those that this implementation has; null counts as absent.

    Raises:
      ValueError: naming file, key and value.
    """
    self._known.add(key)
    value = self._values.get(key)
    if value is not None and value not in allowed:
      raise ValueError(
        f"{self.file}: {self.path}{key} is {value!r:.200}, which is not supported here (only "
        f"{' or '.join(map(repr, allowed))})"
      )

  def object(self, key: str, neutral: Iterable[str] = ()) -> "Fields":
    """A nested object; call its `done` too."""
    value = self.take(key, dict)
    return Fields(self.file, value, f"{self.path}{key}.", neutral)

  def done(self) -> None:
    """Refuses keys that nobody has asked for, unless they say "no" or nothing.

    Raises:
      ValueError: listing them.
    """
    off = (None, False, [], {}, "", 0)
    left = {k: v for k, v in self._values.items() if k not in self._known and v not in off}
    if left:
      listed = ", ".join(shorten([f"{self.path}{k} = {v!r}"[:120] for k, v in left.items()]))
      raise ValueError(f"{self.file}: not honoured by this importer: {listed}")


def side(fields: Fields, key: str, value: Any) -> int:
  """The side of a square given as [side, side].

  Raises:
    ValueError: if it is no square.
  """
  numbers = value if isinstance(value, list | tuple) and len(value) == 2 else (None, None)
  if not all(type(n) is int and n > 0 for n in numbers) or numbers[0] != numbers[1]:
    raise ValueError(f"{fields.file}: {fields.path}{key} must be a square, got {value!r:.200}")
  return numbers[0]


def compute_dtype(values: Mapping[str, Any]) -> str:
  """The dtype that a Hugging Face config names; "float32" where it names none that is ours."""
  named = str(values.get("torch_dtype") or values.get("dtype") or values.get("model_dtype"))
  named = named.removeprefix("torch.")
  return named if named in ("bfloat16", "float16") else "float32"
