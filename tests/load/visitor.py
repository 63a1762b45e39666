"""A visitor of the page, speaking Gradio's HTTP protocol as the page in a browser does."""

import http.client
import io
import json
import time
import uuid
from typing import Any, NamedTuple

from PIL import Image

PREFIX = "/gradio_api"


class Answer(NamedTuple):
  """What became of a request.

  Attributes:
    how: "answered", "refused" (a full queue), "cancelled", "left", or what went wrong.
    joined, started, ended: seconds of the monotonic clock; started is 0 where it never began.
    words: the last status that the page showed.
  """

  how: str
  joined: float
  started: float
  ended: float
  words: str


class Layout:
  """Which function of the page does what, found by the names of its elements."""

  def __init__(self, config: dict[str, Any]):
    self._names = {c["id"]: c.get("props", {}).get("elem_id") for c in config["components"]}
    self._functions = config["dependencies"]

  def pressed(self, element: str, event: str = "click") -> int:
    """The function behind an event of an element."""
    for function in self._functions:
      if any(self._names.get(t[0]) == element and t[1] == event for t in function["targets"]):
        return function["id"]
    raise ValueError(f"the page has no {event} of {element}")

  def after(self, number: int) -> int:
    """The function that follows on another."""
    return next(f["id"] for f in self._functions if f.get("trigger_after") == number)

  def cancelling(self, element: str) -> int:
    """The function of the chat's Stop button, which has no name: the one that starts nothing."""
    return self.pressed(element)


class Visitor:
  """One session."""

  def __init__(self, host: str, port: int, layout: Layout):
    self.host, self.port, self.layout = host, port, layout
    self.session = uuid.uuid4().hex[:12]

  def post(self, path: str, body: Any, timeout: float = 120) -> tuple[int, Any]:
    """(status, value) of a JSON request."""
    connection = http.client.HTTPConnection(self.host, self.port, timeout=timeout)
    try:
      data = json.dumps(body).encode()
      connection.request("POST", PREFIX + path, data, {"Content-Type": "application/json"})
      answer = connection.getresponse()
      text = answer.read()
      return answer.status, json.loads(text) if text else None
    finally:
      connection.close()

  def upload(self, name: str, data: bytes) -> dict[str, Any]:
    """A file as the page hands it to a function.

    Raises:
      ValueError: if the page refuses it.
    """
    mark = uuid.uuid4().hex
    head = (
      f'--{mark}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n'
      "Content-Type: application/octet-stream\r\n\r\n"
    )
    body = head.encode() + data + f"\r\n--{mark}--\r\n".encode()
    connection = http.client.HTTPConnection(self.host, self.port, timeout=120)
    try:
      kind = {"Content-Type": f"multipart/form-data; boundary={mark}"}
      connection.request("POST", PREFIX + "/upload", body, kind)
      answer = connection.getresponse()
      text = answer.read()
      if answer.status != 200:
        raise ValueError(f"HTTP {answer.status}: {text[:200]!r}")
      return {"path": json.loads(text)[0], "orig_name": name, "meta": {"_type": "gradio.FileData"}}
    finally:
      connection.close()

  def run(self, function: int, data: list[Any]) -> tuple[int, Any]:
    """Calls a function that does not queue."""
    return self.post("/run/predict", self._call(function, data))

  def _call(self, function: int, data: list[Any]) -> dict[str, Any]:
    return {"data": data, "fn_index": function, "session_hash": self.session, "trigger_id": None}

  def ask(
    self, function: int, data: list[Any], *, leave_at: str = "", stop: int | None = None
  ) -> Answer:
    """Queues for a function and follows it to its end.

    Args:
      leave_at: a kind of message at which the connection is dropped, as by a closed tab.
      stop: the function that cancels; called at the first thing that is shown.
    """
    joined, started, words = time.monotonic(), 0.0, ""
    status, said = self.post("/queue/join", self._call(function, data))
    if status != 200:
      how = "refused" if status == 503 else f"HTTP {status}"
      return Answer(how, joined, started, time.monotonic(), json.dumps(said)[:300])
    event = said["event_id"]
    connection = http.client.HTTPConnection(self.host, self.port, timeout=1800)
    try:
      connection.request("GET", f"{PREFIX}/queue/data?session_hash={self.session}")
      stream = connection.getresponse()
      while line := stream.readline():
        if not line.startswith(b"data:"):
          continue
        message = json.loads(line[5:])
        kind = message["msg"]
        if message.get("event_id") not in (None, event):
          continue
        if kind == "process_starts":
          started = time.monotonic()
        if kind == leave_at:
          return Answer("left", joined, started, time.monotonic(), words)
        if kind in ("process_generating", "process_completed"):
          words = _status(message) or words
        if kind == "process_generating" and stop is not None:
          self.run(stop, [])
          stop, leave_at = None, ""
        if kind in ("unexpected_error", "server_stopped"):
          return Answer(f"broken: {message.get('message')}", joined, started, time.monotonic(), "")
        if kind == "process_completed":
          how = "answered" if message["success"] else f"failed: {message['output']}"[:300]
          if not message["success"] and message["output"].get("error"):  # words for the visitor
            how, words = "refused", str(message["output"]["error"])
          how = "cancelled" if "cancelled" in words or "stopped" in words else how
          return Answer(how, joined, started, time.monotonic(), words)
      return Answer("the stream ended without an answer", joined, started, time.monotonic(), words)
    finally:
      connection.close()


def _status(message: dict[str, Any]) -> str:
  """The last text of what a function gives: its status, or differences to it."""
  texts: list[str] = []

  def walk(value: Any) -> None:
    if isinstance(value, str):
      texts.append(value)
    elif isinstance(value, list):
      for part in value:
        walk(part)

  walk(message.get("output", {}).get("data", []))
  return next((t for t in reversed(texts) if '<div class="' in t or "cancelled" in t), "")


def png(shade: int, size: int = 40) -> bytes:
  buffer = io.BytesIO()
  Image.new("RGB", (size, size), (shade % 256, 99, 60)).save(buffer, format="PNG")
  return buffer.getvalue()
