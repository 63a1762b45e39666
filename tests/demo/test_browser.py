"""The page in a real browser: chat, draw, animate, cancel, a bad file, two visitors.

VILAU_MODEL=DIR takes that model instead of one with random weights, VILAU_SCREENSHOTS=DIR keeps
pictures of the page.
"""

import json
import os
import pathlib
import shutil
import urllib.error
import urllib.request
import zipfile

import numpy as np
import pytest

from vilau_jax import api
from vilau_jax.data import media
from vilau_jax.data.formats import emoji

pytest.importorskip("gradio", reason="pip install '.[browser]'")
playwright = pytest.importorskip("playwright.sync_api", reason="pip install '.[browser]'")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)
pytestmark = [
  pytest.mark.nightly,
  pytest.mark.skipif(BROWSER is None, reason="needs chromium or google-chrome"),
]
PATIENCE = 300_000  # milliseconds; the first drawing compiles, perhaps on a busy machine


@pytest.fixture(scope="module")
def served(tmp_path_factory):
  from vilau_jax.demo import page
  from vilau_jax.demo.studio import Studio
  from vilau_jax.demo.uploads import Limits

  path = os.environ.get("VILAU_MODEL")
  if not path:
    import quickstart_model

    root = tmp_path_factory.mktemp("model")
    quickstart_model.write_data(root / "data")
    quickstart_model.write_model(root / "model", root / "data", preset="quickstart")
    path = root / "model"
  studio = Studio(api.load(path), Limits(megapixels=1))
  blocks = page.build(studio)
  _, url, _ = page.launch(blocks, studio, host="127.0.0.1", port=0, block=False)
  yield url, blocks
  blocks.close()


@pytest.fixture(scope="module")
def browser():
  with playwright.sync_playwright() as driver:
    chromium = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
    yield chromium
    chromium.close()


@pytest.fixture
def visit(browser, served):
  """Opens the page as a new visitor at a tab."""
  contexts = []

  def visit(tab: str):
    contexts.append(browser.new_context(viewport={"width": 1280, "height": 900}))
    page = contexts[-1].new_page()
    page.set_default_timeout(PATIENCE)
    page.goto(served[0])
    page.get_by_role("tab", name=tab).click()
    return page

  yield visit
  for context in contexts:
    context.close()


@pytest.fixture
def picture(tmp_path):
  scene = next(emoji.pictures(1, "test", 0))
  return media.write_image(emoji.render(scene, 240), tmp_path / "scene.png")


def says(page, where: str, words: str) -> None:
  playwright.expect(page.locator(where)).to_contain_text(words, timeout=PATIENCE)


def keep(page, name: str, settle: float = 500) -> None:
  folder = os.environ.get("VILAU_SCREENSHOTS")
  if folder:
    page.wait_for_timeout(settle)
    page.screenshot(path=pathlib.Path(folder) / f"{name}.png")


def test_chat_about_an_uploaded_picture(visit, picture):
  page = visit("Chat")
  for question in ("What is in the picture?", "What color is the background?"):
    if question.startswith("What is"):
      page.locator("#question input[type=file]").first.set_input_files(picture)
      page.locator("#question img, #question .thumbnail-item").first.wait_for()
    page.locator("#question textarea").fill(question)
    page.locator("#question textarea").press("Enter")
    page.get_by_text(question, exact=True).wait_for()
    page.wait_for_function(
      "() => !/reading|writing/.test(document.querySelector('#status-chat').innerText)"
    )
  keep(page, "chat")
  assert not page.get_by_label("Share").filter(visible=True).count()
  assert not page.locator("#status-chat").inner_text().strip()
  answers = page.locator("[data-testid=bot]").all_inner_texts()
  assert len(answers) == 2 and all(map(str.strip, answers)), answers


SEEN = """() => {
  window.seen = [];
  const all = (name) => document.querySelectorAll(name);
  new MutationObserver(() => window.seen.push(
    [all('#status-image')[0].innerText, all('.gallery img').length]
  )).observe(document.body, {subtree: true, childList: true, characterData: true});
}"""


def test_draw_shows_rows_as_they_appear_and_gives_metadata(visit):
  page = visit("Draw")
  page.get_by_label("number input for Number").first.fill("16")
  page.keyboard.press("Tab")
  page.evaluate(SEEN)
  page.locator("#start-image").click()
  says(page, "#status-image", "16 drawn in")
  under_way = [count for words, count in page.evaluate("window.seen") if "positions" in words]
  assert under_way and max(under_way) >= 16  # pictures that were not finished
  keep(page, "draw")
  with page.expect_download() as waiting:
    page.get_by_role("button", name="Download with metadata").first.click()
  assert waiting.value.suggested_filename == "drawings.zip"


def test_cancel_ends_a_film_under_way(visit):
  page = visit("Animate")
  page.locator("#prompt-video textarea").fill("an owl moving to the right on a pink background")
  page.get_by_label("number input for Number").last.fill("16")
  page.keyboard.press("Tab")
  page.locator("#start-video").click()
  says(page, "#status-video", "left")
  page.locator("#stop-video").click()
  says(page, "#status-video", "cancelled after")
  keep(page, "cancelled")


def test_animate_plays_in_the_page(visit):
  page = visit("Animate")
  page.locator("#start-video").click()
  says(page, "#status-video", "1 drawn in")
  page.locator("#film video").first.wait_for()
  page.wait_for_function("() => document.querySelector('#film video').currentTime > 0.1")
  keep(page, "animate")


def test_tokenise_shows_depths_and_refuses_what_is_no_picture(visit, picture, tmp_path):
  page = visit("Tokenise")
  bad = tmp_path / "letter.png"
  bad.write_text("Dear Sir or Madam")
  page.locator("#picture input[type=file]").set_input_files(bad)
  page.get_by_text("letter").first.wait_for()
  page.locator("#start-tokens").click()
  says(page, "#status-tokens", "letter.png is not a picture that can be read")
  keep(page, "bad_file")
  large = media.write_image(np.zeros((1100, 1000, 3), np.uint8), tmp_path / "large.png")
  for path, words in ((large, "large.png has 1000x1100 pixels"), (picture, "codes each")):
    page.get_by_label("Remove this file").or_(page.get_by_label("Clear")).first.click()
    page.locator("#picture input[type=file]").set_input_files(path)
    page.get_by_text(path.stem).first.wait_for()
    page.locator("#start-tokens").click()
    says(page, "#status-tokens", words)
  keep(page, "tokenise")
  assert page.get_by_text("dB").count() >= 4


def test_inspect_measures_the_tower(visit):
  page = visit("Inspect")
  page.locator("#start-quality").click()
  page.locator("#sheet img").wait_for()
  table = page.locator("body").inner_text().split("perplexity")[-1].split()
  assert table[:16:4] == ["1", "2", "3", "4"]  # a row a depth
  keep(page, "inspect")


def test_two_visitors_queue_for_the_model(visit):
  pages = visit("Draw"), visit("Draw")
  for page in pages:
    page.locator("#start-image").click()
  for page in pages:
    says(page, "#status-image", "4 drawn in")


def test_what_was_asked_last_is_drawn_after_a_cancelled_wait(visit, tmp_path):
  """Behind another visitor: a prompt is sent, cancelled, and another sent, all while it waits."""
  first, page = visit("Draw"), visit("Draw")
  first.get_by_label("number input for Number").first.fill("16")
  first.keyboard.press("Tab")
  first.locator("#start-image").click()
  says(first, "#status-image", "left")
  for prompt in ("a fox on a blue background", "three apples on a pink background"):
    page.locator("#prompt-image textarea").fill(prompt)
    page.locator("#start-image").click()
    page.wait_for_timeout(500)
    if prompt.startswith("a fox"):
      page.locator("#stop-image").click()
      page.wait_for_timeout(500)
  says(page, "#status-image", "4 drawn in")
  with page.expect_download() as waiting:
    page.get_by_role("button", name="Download with metadata").first.click()
  waiting.value.save_as(tmp_path / "drawn.zip")
  with zipfile.ZipFile(tmp_path / "drawn.zip") as archive:
    assert {entry["prompt"] for entry in json.loads(archive.read("metadata.json"))} == {prompt}


@pytest.mark.parametrize("how", ["New conversation", "Clear"])
def test_a_new_conversation_stays_new(visit, how):
  """Begun while an answer is under way, by the button or the conversation's trash icon."""
  page = visit("Chat")
  page.locator("#question textarea").fill("Tell me about foxes.")
  page.locator("#question textarea").press("Enter")
  page.get_by_text("Tell me about foxes.", exact=True).wait_for()
  page.get_by_role("button", name=how).first.click()
  page.get_by_text("Tell me about foxes.", exact=True).wait_for(state="hidden")
  page.wait_for_timeout(3000)
  assert not page.get_by_text("Tell me about foxes.", exact=True).count()


def test_paths_of_the_server_are_refused(served):
  url, blocks = served
  with pytest.raises(urllib.error.HTTPError, match="403"):
    urllib.request.urlopen(f"{url}gradio_api/file=/etc/passwd")
  look = next(number for number, fn in blocks.fns.items() if fn.name == "look")
  file = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
  asked = json.dumps({"data": [file], "fn_index": look, "session_hash": "spy"}).encode()
  join = urllib.request.Request(
    f"{url}gradio_api/queue/join", asked, {"Content-Type": "application/json"}
  )
  urllib.request.urlopen(join)
  with urllib.request.urlopen(f"{url}gradio_api/queue/data?session_hash=spy") as stream:
    said = stream.read().decode()
  completed = [x for x in said.splitlines() if "process_completed" in x]
  assert completed and '"success":false' in completed[0].replace(" ", "")
