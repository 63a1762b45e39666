"""The Gradio page: tabs over a Studio. One request at a time has the model; the others queue."""

import atexit
import contextlib
import html
import pathlib
import shutil
import tempfile
from collections.abc import Callable
from typing import Any

import gradio as gr
from absl import logging

from vilau_jax.demo import card, files
from vilau_jax.demo.studio import Shown, Studio
from vilau_jax.demo.tickets import Tickets

KEEP_SECONDS = 3600  # files of visitors
# Visitors whose conversations, and places in the queue, are kept: an eighth of a MiB each. Beyond,
# whoever was silent longest is forgotten, so there must be room for all who are turned away while
# one waits.
VISITORS = 2000
STYLE = """
.block.status {min-height: 2.6em; padding: 0 !important}
#talk img {max-height: 110px; width: auto}
.status .error {color: #b91c1c; font-weight: 600}
.status progress {width: 100%; height: .5em}
.gallery .grid-wrap, #sheet img {padding-top: 34px}
#talk [aria-label="Share"], #talk [title="Share"] {display: none}
.gallery img, .codes img {image-rendering: pixelated}
footer {display: none !important}
"""
THEME = dict(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
MODEL = dict(concurrency_id="model", concurrency_limit=1)
PRIVATE = dict(api_visibility="private")
INTRO = (
  "One model reads, writes, draws and animates. **{name}**, {millions:,.1f} million parameters."
)


def serve(studio: Studio, *, host: str, port: int, waiting: int = 20) -> None:
  """Serves the page until it is interrupted; see launch."""
  launch(build(studio), studio, host=host, port=port, waiting=waiting)


def launch(
  page: gr.Blocks, studio: Studio, *, host: str, port: int, waiting: int = 20, block: bool = True
):
  """Serves what `build` made.

  Args:
    page: of `studio`.
    studio: what the page shows.
    host: address; "127.0.0.1" is seen by this machine only.
    port: 0 takes any that is free.
    waiting: visitors that may queue; the next one is told to come later.
    block: False returns at once.

  Returns:
    (app, url, public url), as gradio.Blocks.launch.
  """
  page.queue(max_size=waiting)
  return page.launch(
    server_name=host, server_port=port or None, share=False, footer_links=[], run_history=False,
    max_file_size=int(studio.limits.megabytes * 1e6), theme=gr.themes.Default(**THEME), css=STYLE,
    ssr_mode=False, enable_monitoring=False, state_session_capacity=VISITORS,
    prevent_thread_lock=not block, quiet=not block,
  )  # fmt: skip


def build(studio: Studio) -> gr.Blocks:
  """The page, not served yet."""
  tickets = Tickets()
  folder = pathlib.Path(tempfile.mkdtemp(prefix="vilau-demo-"))
  atexit.register(shutil.rmtree, folder, ignore_errors=True)
  count = card.describe.counts(studio.model.config)["total"]
  keep = (KEEP_SECONDS, KEEP_SECONDS)
  with gr.Blocks(title="VILA-U", analytics_enabled=False, delete_cache=keep) as page:
    name = studio.model.config.name or "VILA-U"
    gr.Markdown(INTRO.format(name=name, millions=count / 1e6))
    with gr.Tab("Chat"):
      _chat(studio, tickets)
    with gr.Tab("Draw"):
      _drawing(studio, tickets, folder, "image")
    with gr.Tab("Animate"):
      _drawing(studio, tickets, folder, "video")
    with gr.Tab("Tokenise"):
      _tokenise(studio)
    with gr.Tab("Inspect"):
      _inspect(studio)
    page.unload(_leaving(tickets))
  return page


def _leaving(tickets: Tickets) -> Callable:
  def leave(request: gr.Request) -> None:
    tickets.cancel(request.session_hash)

  return leave


def _run(
  starts: list,
  stop: gr.Button,
  tickets: Tickets,
  work: Callable,
  inputs: list,
  outputs: list,
  status,
) -> None:
  """`work(cancel, *inputs)` behind every event of `starts`, in the queue for the model; `stop`
  cancels it there too."""
  ticket = gr.Number(0, visible="hidden")  # travels into the queue with what it is for

  def issue(request: gr.Request) -> int:
    return tickets.issue(request.session_hash)

  def run(request: gr.Request, number: float | None, *values):
    session, number = request.session_hash, int(number or 0)
    try:
      with contextlib.closing(work(lambda: tickets.cancelled(session, number), *values)) as steps:
        for shown in steps:
          if tickets.forgotten(number):
            yield [gr.skip()] * len(outputs)  # or Gradio would show again what was shown last
            return
          yield shown
    finally:
      tickets.finish(session, number)

  def cancel(request: gr.Request) -> None:
    tickets.cancel(request.session_hash)

  for start in starts:
    start(issue, None, ticket, queue=False, show_progress="hidden", **PRIVATE).then(
      run, [ticket, *inputs], outputs, show_progress="minimal", show_progress_on=status,
      trigger_mode="multiple", **MODEL, **PRIVATE,
    )  # fmt: skip
  stop.click(cancel, None, None, queue=False, show_progress="hidden", **PRIVATE)


def _status(words: str, share: float | None = None, error: bool = False) -> str:
  kind = "error" if error else "words"
  bar = "" if share is None else f'<progress max="1" value="{share:.3f}"></progress>'
  return f'<div class="{kind}">{html.escape(words)}</div>{bar}'


def _failed(error: Exception) -> str:
  """Status after an error: a ValueError has words for the visitor; what else went wrong is logged,
  as the page goes on for the others."""
  if isinstance(error, ValueError):
    return _status(f"{error}", error=True)
  logging.error("a request of the page failed", exc_info=error)
  if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):  # Python's, or XLA's
    return _status("the model's machine is out of memory; ask for fewer or less", error=True)
  return _status("something failed here; the server's log says what", error=True)


def _seeds() -> gr.Number:
  return gr.Number(0, label="Seed", precision=0, minimum=0, info="same seed, same result")


# Chat


def _chat(studio: Studio, tickets: Tickets) -> None:
  turns, shown = gr.State([]), gr.State([])
  talk = gr.Chatbot(
    label="Conversation", height=480, buttons=["copy"], feedback_options=None, allow_tags=False,
    elem_id="talk",
    placeholder="Add a picture or a video, and ask about it; or just talk.",
  )  # fmt: skip
  box = gr.MultimodalTextbox(
    placeholder="What is in the picture?", file_types=["image", "video"], file_count="multiple",
    show_label=False, sources=["upload"], elem_id="question", max_plain_text_length=10**6,
  )  # fmt: skip
  status = gr.HTML(elem_classes="status", elem_id="status-chat")
  with gr.Row():
    stop, again = gr.Button("Stop", size="sm"), gr.Button("New conversation", size="sm")
  with gr.Accordion("Settings", open=False), gr.Row():
    temperature = gr.Slider(0, 2, 0, step=0.05, label="Temperature", info="0: most likely words")
    seed = _seeds()

  def ask(cancel, turns, shown, value, temperature, seed):
    if cancel():
      yield *[gr.skip()] * 4, _status("cancelled before it began")
      return
    try:
      asked = studio.question(value["text"], value["files"])
      now = [*turns, asked]
      words = [{"path": path} for path in value["files"]] + [value["text"]]
      said = [*shown, *({"role": "user", "content": part} for part in words)]
      yield turns, shown, said, {"text": "", "files": []}, _status("reading")
      written = ""
      for written in studio.answer(now, temperature, seed or 0, cancel):
        yield turns, shown, [*said, _answered(written)], gr.skip(), _status("writing")
    except Exception as error:
      yield turns, shown, shown, value, _failed(error)
      return
    if not written:  # an empty answer can't stand in the conversation
      yield turns, shown, shown, value, _status("the model had nothing to say; ask otherwise")
      return
    now.append({"role": "assistant", "content": written})
    said.append(_answered(written))
    note = "stopped" if cancel() else ""
    yield now, said, said, gr.skip(), _status(note)

  inputs, outputs = [turns, shown, box, temperature, seed], [turns, shown, talk, box, status]
  _run([box.submit], stop, tickets, ask, inputs, outputs, status)

  def fresh(request: gr.Request):
    tickets.forget(request.session_hash)
    return [], [], [], {"text": "", "files": []}, ""

  for forget in (again.click, talk.clear):  # the button, and the conversation's trash icon
    forget(fresh, None, outputs, queue=False, **PRIVATE)


def _answered(words: str) -> dict[str, str]:
  return {"role": "assistant", "content": words}


# Draw and animate


def _drawing(studio: Studio, tickets: Tickets, folder: pathlib.Path, kind: str) -> None:
  image = kind == "image"
  usual = studio.model.config.sampling
  with gr.Row():
    with gr.Column(scale=2):
      example = (
        "two foxes on a blue background"
        if image
        else "a fox moving to the left on a blue background"
      )
      prompt = gr.Textbox(example, label="Prompt", lines=2, elem_id=f"prompt-{kind}")
      with gr.Row():
        start = gr.Button(
          "Draw" if image else "Animate", variant="primary", elem_id=f"start-{kind}"
        )
        stop = gr.Button("Cancel", elem_id=f"stop-{kind}")
      status = gr.HTML(elem_classes="status", elem_id=f"status-{kind}")
      most = studio.limits.outputs
      count = gr.Slider(1, max(2, most), min(4, most) if image else 1, step=1, label="Number")
      with gr.Accordion("Settings", open=False):
        cfg = gr.Slider(
          1, 10, usual.cfg_scale, step=0.1, label="CFG", info="1: no guidance, in half the time"
        )
        temperature = gr.Slider(0, 2, usual.temperature, step=0.05, label="Temperature")
        top_k = gr.Number(usual.top_k, label="Top-k", precision=0, minimum=1)
        top_p = gr.Slider(0.01, 1, usual.top_p, step=0.01, label="Top-p")
        seed = _seeds()
    with gr.Column(scale=3):
      if image:
        view = gr.Gallery(
          label="Drawings", columns=4, object_fit="contain", height=500, format="png",
          elem_classes="gallery", interactive=False, buttons=["download", "fullscreen"],
        )  # fmt: skip
        film = gr.State(None)
      else:
        film = gr.Video(
          label="Film", autoplay=True, loop=True, height=300, elem_id="film", interactive=False
        )
        view = gr.Image(
          label="Frames",
          elem_classes="codes",
          interactive=False,
          buttons=["download", "fullscreen"],
        )
      take = gr.DownloadButton("Download with metadata", interactive=False)

  def work(cancel, prompt, count, cfg, temperature, top_k, top_p, seed):
    if cancel():
      yield gr.skip(), gr.skip(), gr.skip(), _status("cancelled before it began")
      return
    given = dict(cfg_scale=cfg, temperature=temperature, top_k=top_k, top_p=top_p)
    settings = {key: value for key, value in given.items() if value is not None}
    seed = seed or 0  # an emptied field
    files.sweep(folder, KEEP_SECONDS)
    draw = studio.draw if image else studio.animate
    try:
      for shown in draw(prompt, count, seed, settings, cancel):
        yield _seen(studio, shown, folder, image, lambda: studio.made_by(prompt, seed, settings))
    except Exception as error:
      yield gr.skip(), gr.skip(), gr.skip(), _failed(error)

  inputs = [prompt, count, cfg, temperature, top_k, top_p, seed]
  _run(
    [start.click, prompt.submit], stop, tickets, work, inputs, [view, film, take, status], status
  )


def _seen(
  studio: Studio, shown: Shown, folder: pathlib.Path, image: bool, made_by: Callable
) -> tuple:
  """Updates of view, film, download and status."""
  view = film = gr.skip()
  take: Any = gr.skip() if shown.finished else gr.update(interactive=False)
  if shown.pictures is not None:
    view = [files.enlarged(p) for p in shown.pictures] if image else files.strips(shown.pictures)
    if shown.finished:
      take = gr.update(value=files.bundle(shown.pictures, made_by(), folder), interactive=True)
      film = gr.skip() if image else str(files.film(shown.pictures, folder))
  elif not image and not shown.finished and not shown.share:
    film = None
  return view, film, take, _status(shown.words, shown.share)


# Tokenise and inspect


def _tokenise(studio: Studio) -> None:
  with gr.Row():
    with gr.Column(scale=1):
      given = gr.File(label="Picture", file_types=["image"], elem_id="picture")
      start = gr.Button("Tokenise", variant="primary", elem_id="start-tokens")
      status = gr.HTML(elem_classes="status", elem_id="status-tokens")
    with gr.Column(scale=3):
      drawn = gr.Gallery(
        label="The picture as the tower sees it, and drawn from its first 1, 2, .. codes",
        columns=5, object_fit="contain", height=250, elem_classes="gallery", format="png",
        interactive=False, buttons=["fullscreen"],
      )  # fmt: skip
      maps = gr.Gallery(
        label="Codes by depth: equal codes have equal colours", columns=5, object_fit="contain",
        height=250, elem_classes="gallery", format="png", interactive=False,
        buttons=["fullscreen"],
      )  # fmt: skip

  def look(path):
    try:
      if path is None:
        raise ValueError("choose a picture first")
      tokens = studio.tokenise(path)
    except Exception as error:
      return gr.skip(), gr.skip(), _failed(error)
    steps = zip(tokens.reconstructions, tokens.psnrs)
    shown = [(files.enlarged(tokens.square), "picture")] + [
      (files.enlarged(picture), f"{r} code{'s' * (r > 1)}: {near:.1f} dB")
      for r, (picture, near) in enumerate(steps, 1)
    ]
    colours = [(files.enlarged(m), f"depth {r}") for r, m in enumerate(tokens.maps, 1)]
    h, w, depth = tokens.codes.shape
    return shown, colours, _status(f"{h} x {w} positions, {depth} codes each")

  start.click(
    look, given, [drawn, maps, status], show_progress="minimal", show_progress_on=status, **MODEL,
    **PRIVATE,
  )  # fmt: skip


def _inspect(studio: Studio) -> None:
  with gr.Row():
    gr.Dataframe(
      card.components(studio.model), headers=["component", "parameters", "float32"],
      label="Components", interactive=False,
    )  # fmt: skip
    gr.Dataframe(
      card.geometry(studio.model), headers=["geometry", ""], label="Geometry", interactive=False
    )
  start = gr.Button("Measure the tower on bundled pictures", elem_id="start-quality")
  status = gr.HTML(elem_classes="status", elem_id="status-quality")
  with gr.Row():
    table = gr.Dataframe(
      headers=["codes", "PSNR in dB", "codes in use", "perplexity"],
      label="Tower",
      interactive=False,
    )
    sheet = gr.Image(
      label="Pictures, and drawn from 1, 2, .. codes", interactive=False, elem_id="sheet",
      buttons=["fullscreen"],
    )  # fmt: skip
  with gr.Accordion("Config", open=False):
    gr.Code(card.config(studio.model), language="json", interactive=False)

  def measure():
    try:
      return *card.tower_quality(studio.model), ""
    except Exception as error:
      return gr.skip(), gr.skip(), _failed(error)

  start.click(
    measure, None, [table, sheet, status], show_progress="minimal", show_progress_on=status,
    **MODEL, **PRIVATE,
  )  # fmt: skip
