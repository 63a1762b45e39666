"""What the product never does, found in its source; and secrets that stay where they are."""

import ast
import http.server
import json
import pathlib
import threading

import pytest

import vilau_jax
from vilau_jax.cli import demo
from vilau_jax.evaluate.judge import Judge, JudgeSettings

PACKAGE = pathlib.Path(vilau_jax.__file__).parent
SOURCES = {p.relative_to(PACKAGE).as_posix(): p for p in sorted(PACKAGE.rglob("*.py"))}


def calls(path):
  """(dotted name, keywords) of the calls in a file."""
  for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
    if isinstance(node, ast.Call):
      keywords = {k.arg: getattr(k.value, "value", ...) for k in node.keywords}
      yield ast.unparse(node.func), keywords


def imported(path):
  for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
      yield node.module


def test_the_walk_sees_what_it_looks_for(tmp_path):
  (tmp_path / "bad.py").write_text("import os\nos.system('x')\nnp.load(f, allow_pickle=True)\n")
  assert ("os.system", {}) in list(calls(tmp_path / "bad.py"))
  assert ("np.load", {"allow_pickle": True}) in list(calls(tmp_path / "bad.py"))
  assert len(SOURCES) > 100


def test_no_pickle_is_executed():
  """Plain data alone is read from pickles, in one module; arrays and tensors are read as such."""
  for name, path in SOURCES.items():
    unsafe = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"} & set(imported(path))
    assert not unsafe or name == "data/formats/pickles.py", (name, unsafe)
    for call, keywords in calls(path):
      if call == "torch.load":
        assert keywords.get("weights_only") is True, name
      if call.endswith("np.load"):
        assert keywords.get("allow_pickle") is False, name


def test_no_shell_and_no_code_from_strings():
  forbidden = {"eval", "exec", "compile", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load"}
  for name, path in SOURCES.items():
    assert not {"subprocess", "pty", "commands"} & set(imported(path)), name
    for call, keywords in calls(path):
      assert call not in forbidden and not call.startswith(("os.exec", "os.spawn")), (name, call)
      assert not keywords.get("shell"), name


def test_archives_are_read_and_never_unpacked():
  for name, path in SOURCES.items():
    for call, _ in calls(path):
      assert not call.endswith((".extractall", ".extract", "unpack_archive")), (name, call)


def test_the_page_is_for_this_machine_unless_told_otherwise():
  assert demo._HOST.default == "127.0.0.1"
  source = (PACKAGE / "demo" / "page.py").read_text()
  assert "share=False" in source and "allowed_paths" not in source


class Mover(http.server.BaseHTTPRequestHandler):
  """Sends every question on to another server, and keeps what that one is told."""

  seen: list

  def do_POST(self):
    self.rfile.read(int(self.headers["Content-Length"]))
    self.send_response(302)
    self.send_header("Location", f"http://localhost:{self.server.server_port}/elsewhere")
    self.end_headers()

  def do_GET(self):
    self.server.seen.append(self.headers.get("Authorization"))
    self.send_response(401)
    self.end_headers()
    self.wfile.write(b"wrong key: s3cret-key")

  def log_message(self, *args):
    pass


def test_a_key_goes_to_its_server_alone_and_into_no_message(tmp_path, monkeypatch):
  monkeypatch.setenv("A_KEY", "s3cret-key\n")
  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Mover)
  server.seen = []
  threading.Thread(target=server.serve_forever, daemon=True).start()
  try:
    url = f"http://name:passw0rd@127.0.0.1:{server.server_port}/v1"
    settings = JudgeSettings(url, "m", key_env="A_KEY", tries=1)
    judge = Judge(JudgeSettings(url.replace("name:passw0rd@", ""), "m", key_env="A_KEY", tries=1),
                  tmp_path / "verdicts.jsonl")  # fmt: skip
    with pytest.raises(ValueError, match="refuses: HTTP 401") as error:
      judge.ask([{"role": "user", "content": "how good?"}])
  finally:
    server.shutdown()
    server.server_close()
  assert server.seen == [None]
  assert "s3cret" not in str(error.value) and "s3cret" not in repr(settings)
  facts = json.dumps(Judge(settings, tmp_path / "verdicts.jsonl").facts())
  assert "passw0rd" not in facts and "s3cret" not in facts
  kept = tmp_path / "verdicts.jsonl"
  assert not kept.exists() or "s3cret" not in kept.read_text()
  monkeypatch.setenv("A_KEY", "s3cret\nkey")
  with pytest.raises(ValueError, match="the key in A_KEY has characters") as error:
    JudgeSettings("http://127.0.0.1:9/v1", "m", key_env="A_KEY")
  assert "s3cret" not in str(error.value)
