"""The official words to judges. They are other people's texts and not part of this package: they
come from an installed lmms-eval, or from a file, and their hashes are checked."""

import ast
import hashlib
import importlib.util
import pathlib
import re
from typing import Any

from vilau_jax.evaluate.task import read_json

MMVET_SHA256 = "d1b3e0a5b4e72c888b77164489d705bba4dd149934fff564dfba6443d81afe3f"
VIDEO_SYSTEM_SHA256 = "12b9e42d120081bf1e7f1999bb09db2db250add544abd3c183d61a2f938c6510"
VIDEO_USER_SHA256 = "0189121f8268167d0d58a48d342c6e757ee2b8cdee55d05b53eb0d11ba9b7b07"


def mmvet(file: str | None) -> tuple[str, bool]:
  """MM-Vet's table of examples, and whether it is the official one.

  Raises:
    ValueError: without a file if lmms-eval is not installed or holds another text.
  """
  if file is not None:
    text = _text(file)
    return text, _sha(text) == MMVET_SHA256
  text = _constant(_module("mmvet"), "MM_VET_PROMPT")
  # lmms-eval altered the table's head; this is the official one again, as the hash shows.
  text = text.replace("gpt_query_prompt |", "\nQuestion |", 1)
  if _sha(text) != MMVET_SHA256:
    raise ValueError(
      "the installed lmms-eval holds another MM-Vet prompt; give --judge_prompt=FILE"
    )
  return text, True


def video_qa(file: str | None) -> tuple[dict[str, str], bool]:
  """{"system", "user"}, where user holds {question}, {answer} and {pred}; and whether official.

  Args:
    file: JSON with these two texts.

  Raises:
    ValueError: as above, or for a file without them.
  """
  if file is not None:
    texts = read_json(file)
    if not isinstance(texts, dict) or set(texts) != {"system", "user"}:
      raise ValueError(f'{file} must hold {{"system": text, "user": text}}')
    for name in ("{question}", "{answer}", "{pred}"):
      if name not in texts["user"]:
        raise ValueError(f'{file}: "user" lacks {name}')
    return texts, _is_official(texts)
  texts = _messages(_module("activitynetqa"))
  if not _is_official(texts):
    raise ValueError("the installed lmms-eval holds another video prompt; give --judge_prompt=FILE")
  return texts, True


def render(template: str, question: str, answer: str, pred: str) -> str:
  """Fills the three places in one pass, so that braces in the texts are left alone."""
  values = {"question": question, "answer": answer, "pred": pred}
  return re.sub(r"\{(question|answer|pred)\}", lambda match: values[match[1]], template)


def _is_official(texts: dict[str, str]) -> bool:
  user = render(texts["user"], "q0", "a0", "p0")
  return _sha(texts["system"]) == VIDEO_SYSTEM_SHA256 and _sha(user) == VIDEO_USER_SHA256


def _sha(text: str) -> str:
  return hashlib.sha256(text.encode()).hexdigest()


def _text(file: str) -> str:
  path = pathlib.Path(file)
  if not path.is_file():
    raise ValueError(f"no judge prompt at {path}")
  return path.read_text(encoding="utf-8")


def _module(task: str) -> ast.Module:
  """The source of a task of lmms-eval, parsed and not run."""
  package = importlib.util.find_spec("lmms_eval")
  if package is None:
    raise ValueError(
      "the judge's official prompt comes with lmms-eval, which is not installed: "
      "pip install -e '.[lmms]', or give --judge_prompt=FILE"
    )
  path = pathlib.Path(package.origin).parent / "tasks" / task / "utils.py"
  return ast.parse(path.read_text(encoding="utf-8"))


def _assigned(tree: ast.AST, name: str) -> Any:
  for node in ast.walk(tree):
    if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == name:
      return node.value
  raise ValueError(f"lmms-eval's source has no {name} any more; give --judge_prompt=FILE")


def _constant(tree: ast.AST, name: str) -> str:
  return ast.literal_eval(_assigned(tree, name))


def _messages(tree: ast.AST) -> dict[str, str]:
  texts = {}
  for message in _assigned(tree, "messages").elts:
    fields = {key.value: value for key, value in zip(message.keys, message.values)}
    content = fields["content"]
    parts = content.values if isinstance(content, ast.JoinedStr) else [content]
    texts[fields["role"].value] = "".join(
      p.value if isinstance(p, ast.Constant) else f"{{{p.value.id}}}" for p in parts
    )
  return texts
