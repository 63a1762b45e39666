"""Many visitors at once at the page of a small model: what they are told, and what it costs."""

import collections
import http.client
import json
import pathlib
import random
import socket
import statistics
import subprocess
import sys
import threading
import time
from typing import Any

from tests.load.visitor import Answer, Layout, Visitor, png

EVERY = 5.0  # seconds between measurements
KINDS = ("draw", "draw", "animate", "chat", "look", "tokenise", "cancel", "leave", "nonsense")
COUNTS = (1, 1, 2, 4)
PROMPTS = ("a fox", "two owls on a blue background", "\U0001f98a", "a fox " * 60)


class Load:
  """Runs visitors against a server that is there."""

  def __init__(self, host: str, port: int, config: dict[str, Any], seed: int):
    self.host, self.port, self.layout, self.seed = host, port, Layout(config), seed
    self.answers: list[tuple[str, Answer]] = []
    self.errors: list[str] = []
    self._lock = threading.Lock()

  def run(self, users: int, seconds: float, patience: float) -> None:
    """All visitors at once; the last requests are followed to their ends."""
    until = time.monotonic() + seconds
    threads = [
      threading.Thread(target=self._visit, args=(number, until), daemon=True)
      for number in range(users)
    ]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join(max(0.0, until + patience - time.monotonic()))
    left = sum(thread.is_alive() for thread in threads)
    if left:
      self.errors.append(f"{left} visitors still wait {patience:g} s after the end")

  def _visit(self, number: int, until: float) -> None:
    rng = random.Random(f"{self.seed}/{number}")
    while time.monotonic() < until:
      kind = rng.choice(KINDS)
      visitor = Visitor(self.host, self.port, self.layout)
      try:
        answer = self._act(visitor, kind, rng)
        with self._lock:
          self.answers.append((kind, answer))
        if answer.how == "refused":
          time.sleep(rng.uniform(0.5, 3))  # as somebody who is told to come later
      except Exception as error:
        with self._lock:
          self.errors.append(f"{kind}: {type(error).__name__}: {error}"[:300])
        time.sleep(1)

  def _act(
    self, visitor: Visitor, kind: str, rng: random.Random, drawn: tuple[str, int] | None = None
  ) -> Answer:
    """One request. drawn: prompt and number of drawings, else chosen by rng."""
    layout = self.layout
    if kind in ("draw", "animate", "cancel", "leave", "nonsense"):
      name = "video" if kind == "animate" else "image"
      issue = layout.pressed(f"start-{name}")
      ticket = visitor.run(issue, [])[1]["data"][0]
      prompt, count = drawn or (rng.choice(PROMPTS), rng.choice(COUNTS))
      count = count if name == "image" else 1
      if kind == "nonsense":
        prompt, count = rng.choice((("", 1), ("x" * 5000, 1), ("a", 99), ("a", -1), (None, 1)))
      data = [ticket, prompt, count, 3.0, 1.0, 16, 0.96, rng.randrange(2**31)]
      return visitor.ask(
        layout.after(issue), data,
        leave_at=rng.choice(("estimation", "process_generating")) if kind == "leave" else "",
        stop=layout.pressed("stop-image") if kind == "cancel" else None,
      )  # fmt: skip
    if kind == "tokenise":
      file = visitor.upload(
        "a.png", png(rng.randrange(256)) if rng.random() < 0.8 else b"no picture"
      )
      return visitor.ask(layout.pressed("start-tokens"), [file])
    files = [visitor.upload("a.png", png(rng.randrange(256)))] if kind == "look" else []
    issue = layout.pressed("question", "submit")
    ticket = visitor.run(issue, [])[1]["data"][0]
    box = {"text": "what is it?", "files": files}
    return visitor.ask(layout.after(issue), [ticket, None, None, box, 0.0, 0])


def inversions(answers: list[Answer]) -> int:
  """How often a request began before one that had joined the queue a second or more earlier, and
  that was answered: one model serves one after the other."""
  begun = sorted((a for a in answers if a.started), key=lambda a: a.started)
  return sum(
    first.joined > later.joined + 1.0
    for place, first in enumerate(begun)
    for later in begun[place + 1 :]
  )


def memory(pid: int) -> float:
  """Resident MiB of a process."""
  for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
    if line.startswith("VmRSS"):
      return int(line.split()[1]) / 1024
  raise ProcessLookupError(pid)


def served(model: pathlib.Path, log: pathlib.Path, waiting: int) -> tuple[subprocess.Popen, int]:
  """`vilau demo`, once it answers."""
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  command = [sys.executable, "-m", "vilau_jax.cli.main", "demo", f"--model={model}",
             f"--port={port}", f"--max_waiting={waiting}"]  # fmt: skip
  with log.open("w") as file:
    process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
  until = time.monotonic() + 900
  while time.monotonic() < until and process.poll() is None:
    try:
      config(port)
      return process, port
    except (ConnectionError, OSError, http.client.HTTPException):
      time.sleep(1)
  process.kill()
  raise SystemExit(f"the page does not start; see {log}")


def config(port: int) -> dict[str, Any]:
  connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
  try:
    connection.request("GET", "/config")
    return json.loads(connection.getresponse().read())
  finally:
    connection.close()


def measure(model: pathlib.Path, log: pathlib.Path, options) -> tuple[dict[str, Any], list[str]]:
  """Figures, and what is wrong with them."""
  process, port = served(model, log, options.waiting)
  rss: list[float] = []
  ended = threading.Event()

  def watch():
    while not ended.wait(EVERY) and process.poll() is None:
      rss.append(memory(process.pid))

  try:
    load = Load("127.0.0.1", port, config(port), options.seed)
    # Every number of drawings and every length of a prompt compiles a program of its own, which
    # stays; memory is judged behind that.
    first = [("draw", (p, n)) for p in PROMPTS for n in sorted(set(COUNTS))]
    first += [("animate", (p, 1)) for p in PROMPTS]
    first += [(kind, None) for kind in ("chat", "look", "tokenise")]
    warm = [
      load._act(Visitor(load.host, port, load.layout), kind, random.Random(1), drawn)
      for kind, drawn in first
    ]
    wrong = [f"warming up: {a}" for a in warm if a.how != "answered"]
    threading.Thread(target=watch, daemon=True).start()
    load.run(options.users, options.minutes * 60, options.patience)
    if process.poll() is not None:
      wrong.append(f"the page has ended with {process.returncode}; see {log}")
    else:  # all slots are free again: nobody is before the next visitor
      last = load._act(Visitor(load.host, port, load.layout), "draw", random.Random(1))
      if last.how != "answered":
        wrong.append(f"behind the load: {last}")
  finally:
    ended.set()
    process.kill()
    process.wait()
  return _figures(load, rss, last.ended - last.joined, wrong)


def _figures(load: Load, rss: list[float], last: float, wrong: list[str]):
  polite = {"answered", "refused", "left"}
  kinds = collections.Counter((kind, a.how) for kind, a in load.answers)
  wrong += [
    f"{n} times {kind}: {how}"
    for (kind, how), n in kinds.items()
    if how not in polite and (kind, how) != ("cancel", "cancelled")  # nobody else wished that
  ]
  wrong += [f"{n} times {error}" for error, n in collections.Counter(load.errors).items()]
  waits = [a.ended - a.joined for _, a in load.answers if a.how == "answered"]
  third = max(len(rss) // 3, 1)
  early, late = statistics.median(rss[third : 2 * third] or rss), statistics.median(rss[-third:])
  if late > 1.05 * early + 20:
    wrong.append(f"memory grows: {early:.0f} MiB in the second third, {late:.0f} in the last")
  out_of_order = inversions([a for _, a in load.answers])
  if out_of_order:
    wrong.append(f"{out_of_order} pairs were served out of order")
  table = {
    k: {h: n for (kind, h), n in sorted(kinds.items()) if kind == k} for k in sorted(set(KINDS))
  }
  return {
    "requests": len(load.answers), "outcomes": table, "answered": len(waits),
    "median_seconds": round(statistics.median(waits), 1) if waits else None,
    "longest_seconds": round(max(waits), 1) if waits else None,
    "memory_MiB": {"first": round(rss[0]), "second_third": round(early), "last_third": round(late),
                   "most": round(max(rss))},
    "a_drawing_behind_it_seconds": round(last, 1),
  }, wrong  # fmt: skip
