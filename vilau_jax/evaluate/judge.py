"""Verdicts of a language model behind any OpenAI-compatible endpoint.

Every reply is kept in verdicts.jsonl under a hash of what was asked, so an interrupted run asks
nothing twice. Time-outs, 429, 5xx, dropped connections and replies that are no chat completion are
tried again, waiting longer each time; what stays without a reply is reported, never invented. So is
a question that a server which has answered others refuses: a content filter's, or one too long.
"""

import dataclasses
import hashlib
import http.client
import json
import os
import pathlib
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from vilau_jax import jsons

Messages = list[dict[str, str]]
_AGAIN = (408, 409, 425, 429)  # beside 5xx
_REFUSED = (400, 413, 422)  # perhaps this question only
_DEAD_AFTER = 3  # questions in a row without any reply: the judge is gone


@dataclasses.dataclass(frozen=True)
class JudgeSettings:
  """Where the judge is and how to ask.

  Attributes:
    url: base, for example http://localhost:8000/v1; /chat/completions is added.
    model: its name there.
    key_env: environment variable with the key; may be unset for local servers.
    concurrency: questions under way at once.
    tries: of one question.
    timeout: seconds of one try.
    wait: seconds before the second try; doubled each time, at most a minute.
  """

  url: str
  model: str
  key_env: str = "OPENAI_API_KEY"
  concurrency: int = 8
  tries: int = 6
  timeout: float = 60.0
  wait: float = 1.0

  def __post_init__(self):
    if not self.url.startswith(("http://", "https://")):
      raise ValueError(f"--judge_url must begin with http:// or https://, got {self.url!r}")
    if not self.model:
      raise ValueError("--judge_url needs --judge_model")
    for name in ("concurrency", "tries"):
      if getattr(self, name) < 1:
        raise ValueError(f"judge {name} must be at least 1, got {getattr(self, name)}")
    self.key()

  @property
  def shown(self) -> str:
    """The address without a name and password that may stand in it."""
    parts = urllib.parse.urlsplit(self.url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()

  def key(self) -> str:
    """The key; "" if there is none.

    Raises:
      ValueError: if it cannot be sent. (http.client would say so with the key in the message.)
    """
    key = os.environ.get(self.key_env, "").strip()
    if not (key.isascii() and key.isprintable()):
      raise ValueError(f"the key in {self.key_env} has characters that no key has")
    return key


class Unjudged(Exception):
  """No reply in spite of all tries."""


class _Refused(Unjudged):
  """The server wants no such question; it is not gone."""


class Judge:
  """A judge with a memory.

  Args:
    settings: see JudgeSettings.
    cache: verdicts.jsonl; a half line at its end (a killed run) is ignored.

  Attributes:
    asked: tries sent to the server by this object.
    failures: what went wrong, counted by kind.
  """

  def __init__(self, settings: JudgeSettings, cache: str | os.PathLike):
    self.settings = settings
    self.asked = 0
    self.failures: dict[str, int] = {}
    self._cache, self._lock = pathlib.Path(cache), threading.Lock()
    self._in_a_row = 0
    self._replies: dict[str, str] = {}
    if self._cache.exists():
      data = self._cache.read_bytes()
      whole = data.rfind(b"\n") + 1
      os.truncate(self._cache, whole)
      for row in jsons.parse_lines(data[:whole].decode("utf-8"), self._cache):
        self._replies[row["key"]] = row["reply"]

  def ask(self, messages: Messages, *, attempt: int = 0, **parameters: Any) -> str:
    """The reply's text.

    Args:
      messages: role and content of each.
      attempt: tells re-asking apart from asking, in the cache.
      **parameters: temperature, max_tokens and the like; None is left out.

    Raises:
      Unjudged: if there was no reply, or the server refuses this question but answered another.
      ValueError: if the server refuses any question (wrong key, unknown model).
    """
    parameters = {k: v for k, v in parameters.items() if v is not None}
    body = {"model": self.settings.model, "messages": messages, **parameters}
    said = json.dumps([body, attempt], sort_keys=True, ensure_ascii=False)
    key = hashlib.sha256(said.encode()).hexdigest()
    with self._lock:
      if key in self._replies:
        return self._replies[key]
      if self._in_a_row >= _DEAD_AFTER:
        raise Unjudged(f"the judge gave no reply to {self._in_a_row} questions in a row")
    try:
      reply = self._try(json.dumps(body).encode())
    except Unjudged as error:
      with self._lock:
        self._in_a_row = 0 if isinstance(error, _Refused) else self._in_a_row + 1
      raise
    with self._lock:
      self._in_a_row = 0
      self._replies[key] = reply
      with open(self._cache, "a", encoding="utf-8") as f:
        f.write(json.dumps({"key": key, "reply": reply}, ensure_ascii=False) + "\n")
        f.flush()
        os.fsync(f.fileno())
    return reply

  def map(self, function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    """function of every item, several at once; None where it raised Unjudged."""

    def attempt(item):
      try:
        return function(item)
      except Unjudged:
        return None

    with ThreadPoolExecutor(self.settings.concurrency) as pool:
      return list(pool.map(attempt, items))

  def facts(self) -> dict[str, Any]:
    """For scores.json; the key is not among them."""
    return {"url": self.settings.shown, "model": self.settings.model, "failures": self.failures,
            "date": time.strftime("%Y-%m-%d", time.gmtime())}  # fmt: skip

  def _try(self, body: bytes) -> str:
    wait, why = self.settings.wait, ""
    for number in range(self.settings.tries):
      if number:
        time.sleep(min(wait, 60.0))
        wait *= 2
      try:
        return self._send(body)
      except urllib.error.HTTPError as error:
        why = f"HTTP {error.code}"
        if error.code < 500 and error.code not in _AGAIN:
          text = error.read(300).decode("utf-8", "replace")
          text = text.replace(self.settings.key() or "\0", "***")  # some servers repeat it
          why = f"the judge at {self.settings.shown} refuses: {why} {text}"
          if error.code not in _REFUSED or not self._replies:
            raise ValueError(why) from error
          with self._lock:
            self.failures["refused"] = self.failures.get("refused", 0) + 1
          raise _Refused(why) from error
        wait = max(wait, _seconds(error.headers.get("Retry-After")))
      except TimeoutError:
        why = "timeout"
      except (urllib.error.URLError, http.client.HTTPException, ConnectionError) as error:
        reason = getattr(error, "reason", error)
        why = "timeout" if isinstance(reason, TimeoutError) else type(reason).__name__
      except _Garbage as error:
        why = f"garbage ({error})"
      with self._lock:
        self.failures[why] = self.failures.get(why, 0) + 1
    raise Unjudged(f"{self.settings.shown}: {why}, {self.settings.tries} times")

  def _send(self, body: bytes) -> str:
    url = self.settings.url.rstrip("/") + "/chat/completions"
    with self._lock:
      self.asked += 1
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    if key := self.settings.key():  # not for whoever the server may send us to
      request.add_unredirected_header("Authorization", f"Bearer {key}")
    with urllib.request.urlopen(request, timeout=self.settings.timeout) as response:
      data = response.read(_LARGEST + 1)
    if len(data) > _LARGEST:
      raise _Garbage("an endless reply")
    try:
      text = jsons.parse(data)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError) as error:
      raise _Garbage("no chat completion") from error
    if not isinstance(text, str) or not text.strip():
      raise _Garbage("empty reply")
    return text


_LARGEST = 2**22  # bytes of a reply


class _Garbage(Exception):
  """A reply that is no chat completion."""


def _seconds(retry_after: str | None) -> float:
  try:
    return max(0.0, float(retry_after or 0))
  except ValueError:  # a date: our own waiting is as good
    return 0.0
