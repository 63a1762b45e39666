"""Small data sets in the official formats of the benchmarks."""

import json
import pathlib

import numpy as np
import PIL.Image

from vilau_jax.data import media
from vilau_jax.evaluate.benchmarks import mme

rng = np.random.default_rng(7)


def picture(path: pathlib.Path, size=(40, 30)) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  PIL.Image.fromarray(rng.integers(0, 255, (*size, 3), np.uint8)).save(path)


def dump(path: pathlib.Path, content) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(content))


def vqav2(root: pathlib.Path) -> None:
  kinds = [("is the", "yes/no", "yes"), ("how many", "number", "2"), ("what", "other", "red")]
  questions = [{"question_id": 100 + i, "image_id": 42 + i % 2, "question": f"{k} number {i}?"}
               for i, (k, *_) in enumerate(kinds)]  # fmt: skip
  annotations = [
    {"question_id": 100 + i, "image_id": 42 + i % 2, "question_type": kind, "answer_type": answers,
     "multiple_choice_answer": gold,
     "answers": [{"answer": gold if k < 8 else "other", "answer_id": k} for k in range(10)]}
    for i, (kind, answers, gold) in enumerate(kinds)
  ]  # fmt: skip
  dump(root / "v2_OpenEnded_mscoco_val2014_questions.json", {"questions": questions})
  dump(root / "v2_mscoco_val2014_annotations.json", {"annotations": annotations})
  dump(root / "v2_OpenEnded_mscoco_test-dev2015_questions.json", {"questions": questions[:2]})
  dump(root / "v2_OpenEnded_mscoco_test2015_questions.json", {"questions": questions})
  for folder in ("val2014", "test2015"):
    for i in (42, 43):
      picture(root / folder / f"COCO_{folder}_{i:012d}.jpg")


def gqa(root: pathlib.Path) -> None:
  kinds = [("verify", "attr", "yes"), ("query", "rel", "dog"), ("query", "obj", "red")]
  questions = {
    f"q{i}": {
      "question": f"What is {i}?", "answer": answer, "imageId": f"n{i % 2}", "isBalanced": True,
      "groups": {"global": "g", "local": "l"}, "semantic": [{}] * (i + 1),
      "types": {"structural": structural, "semantic": semantic, "detailed": "x"},
    }
    for i, (structural, semantic, answer) in enumerate(kinds)
  }  # fmt: skip
  dump(root / "testdev_balanced_questions.json", questions)
  for i in range(2):
    picture(root / "images" / f"n{i}.jpg")


def textvqa(root: pathlib.Path) -> None:
  rows = [{"question_id": 34602 + i, "image_id": f"im{i}", "question": f"what is the BRAND {i}?",
           "answers": ["nokia"] * 8 + ["nokia phone"] * 2} for i in range(3)]  # fmt: skip
  dump(root / "TextVQA_0.5.1_val.json", {"data": rows})
  tokens = [{"image_id": f"im{i}", "ocr_tokens": ["NOKIA", "N70"][: i + 1]} for i in range(3)]
  dump(root / "TextVQA_Rosetta_OCR_v0.2_val.json", {"data": tokens})
  for i in range(3):
    picture(root / "train_images" / f"im{i}.jpg")


def pope(root: pathlib.Path) -> None:
  root.mkdir(parents=True)
  for part in ("random", "popular", "adversarial"):
    lines = [{"question_id": i + 1, "image": "COCO_val2014_000000000042.jpg",
              "text": f"Is there a {what} in the image?", "label": label}
             for i, (what, label) in enumerate((("dog", "yes"), (part, "no")))]  # fmt: skip
    path = root / f"coco_pope_{part}.json"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
  picture(root / "val2014" / "COCO_val2014_000000000042.jpg")


def mme_release(root: pathlib.Path) -> None:
  ending = " Please answer yes or no."
  for i, task in enumerate(mme.PERCEPTION + mme.COGNITION):
    texts = f"Is it {task}?{ending}\tYes\nIs it nothing?{ending}\tNo\n"
    nested = i % 2 == 0  # both layouts of the release
    folder = root / task
    picture(folder / "images" / "a.jpg" if nested else folder / "a.png", (20, 20))
    at = folder / "questions_answers_YN" / "a.txt" if nested else folder / "a.txt"
    at.parent.mkdir(parents=True, exist_ok=True)
    at.write_text(texts)


def seedbench(root: pathlib.Path) -> None:
  choices = {f"choice_{letter}": f"the {letter}" for letter in "abcd"}
  questions = [
    {"question_id": str(i), "question": "Which one?", "answer": "ABC"[i], "data_type": kind,
     "question_type_id": number, "data_id": f"d{i}", **choices}
    for i, (kind, number) in enumerate((("image", 1), ("video", 10), ("video", 10)))
  ]  # fmt: skip
  types = {"Scene Understanding": 1, "Action Recognition": 10}
  dump(root / "SEED-Bench.json", {"question_type": types, "questions": questions})
  (root / "SEED-Bench-image").mkdir(parents=True)
  picture(root / "d0.png")
  (root / "d0.png").rename(root / "SEED-Bench-image" / "d0")
  picture(root / "SEED-Bench-video-image" / "1.png")
  film(root / "SEED-Bench-video" / "d2.mp4")
  (root / "SEED-Bench-video" / "d2.mp4").rename(root / "SEED-Bench-video" / "d2")


def mmvet(root: pathlib.Path) -> None:
  rows = {
    f"v1_{i}": {"imagename": "v1_0.png", "question": f"What is x in {i}?", "answer": answer,
                "imagesource": "s", "capability": capability}
    for i, (answer, capability) in enumerate(
      (("-1<AND>-5", ["ocr", "math"]), ("no<OR>empty", ["rec"]), ("a meme", ["rec", "gen"]))
    )
  }  # fmt: skip
  dump(root / "mm-vet.json", rows)
  picture(root / "images" / "v1_0.png")


def film(path: pathlib.Path) -> None:
  frames = rng.integers(0, 255, (5, 32, 32, 3), np.uint8)
  if path.suffix == ".gif":
    media.write_gif(frames, path)
  elif path.suffix:
    media.write_video(frames, path)
  else:
    for i, frame in enumerate(frames):
      path.mkdir(parents=True, exist_ok=True)
      PIL.Image.fromarray(frame).save(path / f"{i:03d}.png")


def video_qa(root: pathlib.Path, names=("vid1.mp4", "vid2.gif", "vid3")) -> None:
  questions = [{"video_name": name.split(".")[0], "question": f"what happens in {i}?",
                "question_id": f"v_{i}"} for i, name in enumerate(names)]  # fmt: skip
  answers = [{"answer": f"a{i}", "question_id": f"v_{i}"} for i in range(len(names))]
  dump(root / "test_q.json", questions)
  dump(root / "test_a.json", answers[::-1])  # joined by id, not by order
  for name in names:
    film(root / "videos" / name)


def genai_bench(root: pathlib.Path) -> None:
  golden = pathlib.Path(__file__).parent.parent / "golden" / "eval" / "genai_bench.json"
  skills = json.loads(golden.read_text())["skill_aggregation"]["skills"]
  prompts = {f"{i:05d}": {"prompt": f"prompt {i}", "models": {}} for i in range(6)}
  dump(root / "genai_image.json", prompts)
  dump(root / "genai_skills.json", skills)


WRITERS = {
  "vqav2": vqav2, "gqa": gqa, "textvqa": textvqa, "pope": pope, "mme": mme_release,
  "seedbench": seedbench, "mmvet": mmvet, "msvd-qa": video_qa, "msrvtt-qa": video_qa,
  "tgif-qa": video_qa, "activitynet-qa": video_qa,
}  # fmt: skip
