"""Tasks of lmms-eval itself on local rows, with the real package as typed; `bash launch/live.sh`
installs it (extra `lmms`) and runs these."""

import dataclasses
import functools
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import benchmark_files
import golden_model
import numpy as np
import PIL.Image
import pytest

import vilau_jax
from vilau_jax.data import media
from vilau_jax.evaluate import lmms_eval

package = pytest.importorskip("lmms_eval")
TASKS = pathlib.Path(package.__file__).parent / "tasks"

# The harness's own tasks, with local data.
YAMLS = {
  "pope": """
include: {tasks}/pope/pope.yaml
task: vilau_pope_local
dataset_path: parquet
dataset_kwargs:
  data_files:
    test: {data}/pope.parquet
generation_kwargs:
  max_new_tokens: 4
  do_sample: false
""",
  "rounds": """
include: {tasks}/ovobench/ovo_forward.yaml
task: vilau_rounds_local
dataset_path: json
dataset_name: null
dataset_kwargs:
  data_files:
    test: {data}/rounds.json
generation_kwargs:
  max_new_tokens: 4
  do_sample: false
lmms_eval_specific_kwargs:
  default:
    data_dir: {data}
""",
  "sketch": """
include: {tasks}/unig2u/chartqa100/chartqa100_visual_cot.yaml
task: vilau_sketch_local
dataset_path: parquet
dataset_kwargs:
  data_files:
    train: {data}/sketch.parquet
generation_kwargs:
  visual_cot: true
  max_new_tokens: 4
""",
  "choice": """
task: vilau_choice_local
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}/choice.json
test_split: test
output_type: multiple_choice
doc_to_text: question
doc_to_choice: choices
doc_to_target: 1
doc_to_visual: !function functions.nothing
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
""",
}
WORDS = ("dog", "cat", "road")
STEPS = ("cut it", "mix it")


@functools.cache
def pictures() -> list[PIL.Image.Image]:
  rng = np.random.default_rng(0)
  return [PIL.Image.fromarray(rng.integers(0, 255, (30, 30, 3), np.uint8)) for _ in range(3)]


@functools.cache
def model() -> vilau_jax.VilaU:
  """The tiny model with a context for the harness's long questions."""
  loaded = golden_model.tiny()
  llm = dataclasses.replace(loaded.config.llm, max_positions=2048)
  config = dataclasses.replace(loaded.config, llm=llm)
  return vilau_jax.VilaU.from_loaded(dataclasses.replace(loaded, config=config))


def write(root: pathlib.Path) -> None:
  """Data, tasks and the model."""
  import datasets

  def parquet(name: str, rows: list[dict]) -> None:
    table = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    table.to_parquet(str(root / f"{name}.parquet"))

  parquet("pope", [
    {"id": str(i), "question_id": str(i), "question": f"Is there a {word} in the image?",
     "answer": "yes", "image_source": "x", "image": picture, "category": "random"}
    for i, (word, picture) in enumerate(zip(WORDS, pictures()))
  ])  # fmt: skip
  parquet("sketch", [{"question": "how many?", "answer": "2", "type": "human_test",
                      "image": pictures()[0]}])  # fmt: skip
  rounds = {"id": 7, "task": "SSR", "question": "",
            "test_info": [{"step": step, "type": i} for i, step in enumerate(STEPS)]}  # fmt: skip
  benchmark_files.dump(root / "rounds.json", [rounds])
  for i in range(2):
    benchmark_files.film(root / f"7_{i}.mp4")
  choices = [{"question": "what?", "choices": ["a dog", "a cat"]}]
  benchmark_files.dump(root / "choice.json", choices)
  (root / "tasks").mkdir()
  for name, text in YAMLS.items():
    (root / "tasks" / f"{name}.yaml").write_text(text.format(tasks=TASKS, data=root))
  (root / "tasks" / "functions.py").write_text("def nothing(doc):\n  return []\n")
  model().save(root / "model")


@pytest.fixture(scope="module")
def outcome() -> tuple[pathlib.Path, dict, dict[str, list]]:
  """The folder, the results of the tasks and the samples of each, as the harness wrote them."""
  root = pathlib.Path(tempfile.mkdtemp(prefix="vilau_lmms_"))
  write(root)
  environment = dict(os.environ, HF_HUB_OFFLINE="1", HF_HOME=str(root / "hf"),
                     WANDB_MODE="disabled")  # fmt: skip
  tasks = ",".join(f"vilau_{name}_local" for name in YAMLS)
  typed = [sys.executable, "-m", "lmms_eval", "--model", "vilau_jax", "--model_args",
           f"checkpoint={root / 'model'},output_dir={root / 'drawn'}", "--tasks", tasks,
           "--include_path", str(root / "tasks"), "--output_path", str(root / "out"),
           "--log_samples", "--batch_size", "2"]  # fmt: skip
  done = subprocess.run(typed, env=environment, capture_output=True, text=True, timeout=1800)
  found = list((root / "out").rglob("*_results.json"))  # it exits 0 after errors, too
  assert done.returncode == 0 and found, done.stdout[-3000:] + done.stderr[-3000:]
  samples = {}
  for name in YAMLS:
    path = next((root / "out").rglob(f"*samples_vilau_{name}_local.jsonl"))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    samples[name] = [row["filtered_resps"] for row in rows]
  return root, json.loads(found[0].read_text())["results"], samples


def say(*parts) -> str:
  return model().generate_text([list(parts)], max_new_tokens=4)[0]


def test_one_of_the_harness_tasks_runs_on_the_real_package(outcome):
  _, results, samples = outcome
  ending = "\nAnswer the question using a single word or phrase."
  want = [say(vilau_jax.Image(picture), f"Is there a {word} in the image?{ending}")
          for word, picture in zip(WORDS, pictures())]  # fmt: skip
  assert samples["pope"] == want
  share = np.mean([text.lower().strip() == "yes" for text in want])
  assert results["vilau_pope_local"]["pope_accuracy,none"] == pytest.approx(share)


def test_a_task_of_several_rounds(outcome):
  from lmms_eval.tasks.ovobench.constant import SSR_PROMPT_TEMPLATE as template

  root, results, samples = outcome
  want = [say(vilau_jax.Video(str(root / f"7_{i}.mp4")), template.format(step))
          for i, step in enumerate(STEPS)]  # fmt: skip
  assert samples["rounds"] == [want]
  right = [("No" in want[0]) or want[0] == "N", ("Yes" in want[1]) or want[1] == "Y"]
  found = results["vilau_rounds_local"]["forward_acc,none"]
  assert found == pytest.approx(100 * np.mean(right))


def test_a_task_that_wants_a_sketch_first(outcome):
  from lmms_eval.tasks.unig2u.chartqa100 import utils

  root, _, samples = outcome
  words = {"pre_prompt": "", "post_prompt": "\nAnswer the question with a single word."}
  context = utils.chartqa_doc_to_text_visual_cot({"question": "how many?"}, words)
  wish, question = lmms_eval.sketch_and_question(context)
  assert "annotated version" in wish and question.endswith("a single word.")
  [drawn] = (root / "drawn" / "drawings").iterdir()
  picture = np.asarray(media.open_image(drawn))
  np.testing.assert_array_equal(picture, model().generate_images([wish])[0])
  want = say(vilau_jax.Image(pictures()[0]), vilau_jax.Image(str(drawn)), question)
  assert samples["sketch"] == [want]


def test_a_task_that_compares_likelihoods(outcome):
  _, results, _ = outcome
  texts = ("a dog", "a cat")
  losses = [-float(model().score(["what?"], [text])[0]) for text in texts]
  sizes = [len(model().tokenizer.encode(f" {t}</s>", prefix=False)) for t in texts]
  right = float(np.argmin(np.divide(losses, sizes)) == 1)
  assert results["vilau_choice_local"]["acc,none"] == right


def test_the_model_is_found_by_its_entry_point():
  from lmms_eval.models.registry_v2 import ModelManifest

  [manifest] = lmms_eval.manifests()
  assert isinstance(manifest, ModelManifest) and manifest.model_id == lmms_eval.MODEL
  fields = json.loads(
    (pathlib.Path(__file__).parent.parent / "golden" / "eval" / "lmms_eval_contract.json")
    .read_text()
  )["manifest_fields"]  # fmt: skip
  assert {f.name for f in dataclasses.fields(manifest)} >= set(fields)
