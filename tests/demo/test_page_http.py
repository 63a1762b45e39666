"""The page as a client sees it that is no browser: what it may send, and what it is told.

Needs gradio alone: pip install '.[demo]'.
"""

import functools
import html
import http.client
import json

import golden_model
import pytest

import vilau_jax
from tests.load.page import config
from tests.load.visitor import Layout, Visitor, png

pytest.importorskip("gradio", reason="pip install '.[demo]'")
pytestmark = pytest.mark.nightly


@functools.cache
def studio():
  from vilau_jax.demo.studio import Studio
  from vilau_jax.demo.uploads import Limits

  model = vilau_jax.VilaU.from_loaded(golden_model.tiny())
  return Studio(model, Limits(megabytes=0.05, outputs=4))


@pytest.fixture(scope="module")
def port():
  from vilau_jax.demo import page

  blocks = page.build(studio())
  _, url, _ = page.launch(blocks, studio(), host="127.0.0.1", port=0, waiting=3, block=False)
  yield int(url.rstrip("/").rpartition(":")[2])
  blocks.close()


@pytest.fixture
def visitor(port):
  return Visitor("127.0.0.1", port, Layout(config(port)))


def draw(visitor, **changes):
  issue = visitor.layout.pressed("start-image")
  _, said = visitor.run(issue, [])
  data = dict(ticket=said["data"][0], prompt="a fox", count=1, cfg=1.0, temperature=1.0, top_k=9,
              top_p=0.9, seed=0) | changes  # fmt: skip
  return visitor.ask(visitor.layout.after(issue), list(data.values()))


def test_a_drawing_is_answered(visitor):
  answer = draw(visitor)
  assert answer.how == "answered" and "1 drawn in" in answer.words, answer


@pytest.mark.parametrize(
  "changes",
  [dict(prompt=""), dict(prompt="x" * 9999), dict(prompt=None), dict(count=99), dict(count=-1),
   dict(count="many"), dict(seed=-1), dict(seed=2**40), dict(top_k=0), dict(top_p=7),
   dict(temperature="hot"), dict(cfg=None), dict(temperature=[1]), dict(ticket=None),
   dict(ticket=10**9)],
)  # fmt: skip
def test_nonsense_is_refused_and_the_page_goes_on(visitor, changes):
  answer = draw(visitor, **changes)
  assert answer.how.startswith(("answered", "cancelled", "refused", "failed")), answer
  assert "drawn in" not in answer.words, answer
  assert draw(visitor).how == "answered"


@pytest.mark.parametrize(
  "error, words",
  [(RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes"), "out of memory"),
   (KeyError("secret"), "something failed here; the server's log says what")],
)  # fmt: skip
def test_a_fault_is_told_in_words_and_logged(visitor, monkeypatch, caplog, error, words):
  def fails(*args, **kwargs):
    raise error

  with monkeypatch.context() as broken:
    broken.setattr(studio().model, "generate_images", fails)
    broken.setattr(studio().model, "encode_images", fails)
    answer = draw(visitor)
    assert answer.how == "answered" and words in html.unescape(answer.words), answer
    file = visitor.upload("picture.png", png(3))
    answer = visitor.ask(visitor.layout.pressed("start-tokens"), [file])
    assert answer.how == "answered" and words in html.unescape(answer.words), answer
  assert "in fails" in caplog.text and str(error) in caplog.text
  assert "1 drawn in" in draw(visitor).words


def test_paths_of_the_server_are_refused(visitor, port, tmp_path):
  secret = tmp_path / "secret.png"
  secret.write_bytes(png(9))
  for path in ("/etc/passwd", str(secret), f"{secret.parent}/../{tmp_path.name}/secret.png"):
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", f"/gradio_api/file={path}")
    assert connection.getresponse().status in (403, 404)
    file = {"path": path, "meta": {"_type": "gradio.FileData"}}
    answer = visitor.ask(visitor.layout.pressed("start-tokens"), [file])
    assert answer.how.startswith("failed"), answer


def test_uploads_have_a_limit_and_lie_where_the_page_puts_them(visitor):
  with pytest.raises(ValueError, match="HTTP 413"):
    visitor.upload("big.png", bytes(60_000))
  file = visitor.upload("../../../evil.png", png(3))
  assert ".." not in file["path"] and file["path"].endswith("evil.png")
  answer = visitor.ask(visitor.layout.pressed("start-tokens"), [file])
  assert answer.how == "answered" and "codes each" in answer.words, answer


def test_private_functions_are_not_offered(port):
  connection = http.client.HTTPConnection("127.0.0.1", port)
  connection.request("GET", "/gradio_api/info")
  assert json.loads(connection.getresponse().read())["named_endpoints"] == {}
