"""A server that speaks the chat-completions protocol, and misbehaves when told to."""

import contextlib
import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator


class JudgeServer:
  """Serves on a free local port.

  Args:
    reply: message text of a request body.
    troubles: what happens to the first requests, one each: "429", "500", "timeout", "drop",
      "html", "empty", "no choices", "400", "401"; then all is well.

  Attributes:
    bodies: every request, in order.
    keys: their Authorization headers.
    dead: while true, every connection is dropped.
  """

  def __init__(self, reply: Callable[[dict], str], troubles=()):
    self.reply, self.troubles = reply, list(troubles)
    self.bodies: list[dict] = []
    self.keys: list[str | None] = []
    self.dead = False
    self._lock = threading.Lock()

  @property
  def url(self) -> str:
    return f"http://127.0.0.1:{self._server.server_port}/v1"

  @contextlib.contextmanager
  def running(self) -> Iterator["JudgeServer"]:
    judge = self

    class Handler(http.server.BaseHTTPRequestHandler):
      def do_POST(self):
        judge.handle(self)

      def log_message(self, *args):
        pass

    self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=self._server.serve_forever, daemon=True)
    thread.start()
    try:
      yield self
    finally:
      self._server.shutdown()
      self._server.server_close()
      thread.join()

  def handle(self, http_request) -> None:
    body = json.loads(http_request.rfile.read(int(http_request.headers["Content-Length"])))
    with self._lock:
      self.bodies.append(body)
      self.keys.append(http_request.headers.get("Authorization"))
      trouble = "drop" if self.dead else self.troubles.pop(0) if self.troubles else None
    if http_request.path != "/v1/chat/completions":
      return self._send(http_request, 404, b"no such place")
    if trouble == "drop":
      http_request.connection.close()
      return None
    if trouble == "timeout":
      time.sleep(0.8)
      return None
    if trouble in ("429", "500", "400", "401"):
      return self._send(http_request, int(trouble), b'{"error": {"message": "not now"}}')
    if trouble == "html":
      return self._send(http_request, 200, b"<html>a proxy's page</html>")
    if trouble == "no choices":
      return self._send(http_request, 200, b'{"choices": []}')
    content = "" if trouble == "empty" else self.reply(body)
    message = {"role": "assistant", "content": content}
    answer = {"object": "chat.completion", "model": body["model"],
              "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}  # fmt: skip
    return self._send(http_request, 200, json.dumps(answer).encode())

  def _send(self, http_request, code: int, data: bytes) -> None:
    http_request.send_response(code)
    http_request.send_header("Content-Length", str(len(data)))
    if code == 429:
      http_request.send_header("Retry-After", "0.02")
    http_request.end_headers()
    http_request.wfile.write(data)
