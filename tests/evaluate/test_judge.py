"""Judges behind a real local server: retries, the memory of verdicts, partial results."""

import hashlib
import importlib.util
import json
import threading

import benchmark_files
import pytest
from judge_server import JudgeServer

from vilau_jax.cli import main as cli
from vilau_jax.evaluate import judge_prompts, paper, runner
from vilau_jax.evaluate.judge import Judge, JudgeSettings, Unjudged
from vilau_jax.evaluate.task import Options

ASK = [{"role": "user", "content": "how good?"}]
VIDEO_WORDS = {"system": "You judge.", "user": "{question} | {answer} | {pred}"}


def settings(server, **changes):
  return JudgeSettings(server.url, "judge-1", **{"wait": 0.01, "timeout": 0.3} | changes)


def yes(body):
  return "{'pred': 'yes', 'score': 4}"


def test_every_trouble_is_tried_again(tmp_path, monkeypatch):
  monkeypatch.setenv("A_KEY", "secret")
  troubles = ["429", "500", "timeout", "drop", "html", "empty", "no choices"]
  with JudgeServer(lambda body: "0.5", troubles).running() as server:
    judge = Judge(settings(server, tries=8, key_env="A_KEY"), tmp_path / "v.jsonl")
    assert judge.ask(ASK, temperature=0.0, max_tokens=3, top_p=None) == "0.5"
  assert len(server.bodies) == 8 == judge.asked and sum(judge.failures.values()) == 7
  assert server.bodies[0] == {"model": "judge-1", "messages": ASK, "temperature": 0.0,
                              "max_tokens": 3}  # fmt: skip
  assert server.keys[0] == "Bearer secret" and "secret" not in json.dumps(judge.facts())
  assert "timeout" in judge.failures and "HTTP 429" in judge.failures


def test_what_the_judge_refuses_is_not_tried_again(tmp_path):
  with JudgeServer(yes, ["401"]).running() as server:
    with pytest.raises(ValueError, match="refuses: HTTP 401"):
      Judge(settings(server), tmp_path / "v.jsonl").ask(ASK)
    assert len(server.bodies) == 1
  with pytest.raises(ValueError, match="--judge_url must begin"):
    JudgeSettings("localhost:8000", "m")
  with pytest.raises(ValueError, match="needs --judge_model"):
    JudgeSettings("http://localhost:8000", "")


def test_a_refused_question_costs_only_its_own_verdict(tmp_path):
  with JudgeServer(yes, ["400"]).running() as server:
    judge = Judge(settings(server), tmp_path / "v.jsonl")
    with pytest.raises(ValueError, match="refuses: HTTP 400"):  # as it would any, for all we know
      judge.ask(ASK)
    judge.ask(ASK)
    server.troubles = ["400"] * 5
    asked = [[{"role": "user", "content": str(i)}] for i in range(6)]
    got = judge.map(judge.ask, asked)
  assert sum(reply is None for reply in got) == 5 and yes({}) in got
  assert judge.failures == {"refused": 5} and len(server.bodies) == 8


def test_verdicts_are_remembered_and_a_half_line_is_dropped(tmp_path):
  path = tmp_path / "v.jsonl"
  with JudgeServer(lambda body: f"reply {len(server.bodies)}").running() as server:
    judge = Judge(settings(server), path)
    first = [judge.ask(ASK), judge.ask(ASK, attempt=1), judge.ask(ASK, temperature=1.0)]
    assert len(set(first)) == 3
    with open(path, "a") as f:
      f.write('{"key": "ab')  # killed in the middle of a write
    again = Judge(settings(server), path)
    assert [again.ask(ASK), again.ask(ASK, attempt=1), again.ask(ASK, temperature=1.0)] == first
    assert again.asked == 0
    again.ask(ASK, attempt=2)
    assert len(Judge(settings(server), path)._replies) == 4


def test_replies_may_hold_other_ends_of_lines(tmp_path):
  with JudgeServer(lambda body: "1\u2028because\x85 so").running() as server:
    said = Judge(settings(server), tmp_path / "v.jsonl").ask(ASK)
    again = Judge(settings(server), tmp_path / "v.jsonl")
    assert again.ask(ASK) == said == "1\u2028because\x85 so" and not again.asked


def test_a_dead_judge_is_given_up(tmp_path):
  with JudgeServer(yes).running() as server:
    judge = Judge(settings(server, tries=2, concurrency=2), tmp_path / "v.jsonl")
    server.dead = True
    found = judge.map(lambda i: judge.ask(ASK, attempt=i), range(40))
    assert found == [None] * 40
    assert judge.asked < 12  # it does not try all forty
    with pytest.raises(Unjudged, match="in a row"):
      judge.ask(ASK)


def evaluate(name, root, out, server, prompt, predictions=None, **options):
  rows = runner.catalogue.create(name, root, Options()).requests()
  answers = out.parent / "answers.jsonl"
  answers.write_text("".join(json.dumps({"id": r.id, "answer": f"said {r.id}"}) + "\n"
                             for r in rows))  # fmt: skip
  judge = settings(server, tries=2, concurrency=1)
  return runner.run(
    name, data=root, output=out, predictions=predictions or answers,
    options=Options(judge=judge, judge_prompt=str(prompt), **options),
  )  # fmt: skip


def test_video_questions_are_judged(tmp_path):
  benchmark_files.video_qa(tmp_path / "data")
  (tmp_path / "words.json").write_text(json.dumps(VIDEO_WORDS))

  def reply(body):
    asked = body["messages"][1]["content"]
    return {"v_0": yes(body), "v_1": "{'pred': 'no', 'score': 1.9}"}.get(asked[-3:], "hm")

  with JudgeServer(reply).running() as server:
    where = ("msvd-qa", tmp_path / "data", tmp_path / "out", server, tmp_path / "words.json")
    result = evaluate(*where)
    count = len(server.bodies)
    assert server.bodies[0]["messages"] == [
      {"role": "system", "content": "You judge."},
      {"role": "user", "content": "what happens in 0? | a0 | said v_0"},
    ]
    assert result["metrics"] == {"accuracy": 50.0, "mean_score": 2.5, "yes": 1, "no": 1}
    assert result["details"]["unparsed"] == 1 and result["partial"] is None
    assert "another prompt" in " ".join(paper.differences(result))
    counted = evaluate(*where, unparsed="no")
    assert counted["metrics"]["accuracy"] == pytest.approx(100 / 3)
    submission = tmp_path / "out" / "submission.jsonl"  # where "answer" is the truth
    again = evaluate(*where, predictions=submission)
    assert again["metrics"] == result["metrics"]
    assert len(server.bodies) == count  # every verdict was remembered


def test_a_judge_that_dies_leaves_a_partial_result_that_is_completed_later(tmp_path):
  benchmark_files.video_qa(tmp_path / "data")
  (tmp_path / "words.json").write_text(json.dumps(VIDEO_WORDS))
  with JudgeServer(yes).running() as server:
    where = ("tgif-qa", tmp_path / "data", tmp_path / "out", server, tmp_path / "words.json")
    server.reply = lambda body: setattr(server, "dead", True) or yes(body)
    result = evaluate(*where)
    assert result["partial"] == "the judge gave no verdict on 2 of 3"
    assert result["details"]["judged"] == 1 and result["metrics"]["yes"] == 1
    assert json.loads((tmp_path / "out" / "scores.json").read_text())["partial"]
    assert "partial" in paper.differences(result)[0]
    server.dead, server.reply = False, yes
    result = evaluate(*where)
    assert result["partial"] is None and result["metrics"]["yes"] == 3


@pytest.mark.parametrize(
  ("trouble", "kind"),
  [("429", "HTTP 429"), ("500", "HTTP 500"), ("timeout", "timeout"), ("html", "garbage"),
   ("empty", "garbage")],
)  # fmt: skip
def test_a_judge_that_never_recovers_leaves_a_partial_result(trouble, kind, tmp_path):
  benchmark_files.video_qa(tmp_path / "data")
  (tmp_path / "words.json").write_text(json.dumps(VIDEO_WORDS))
  with JudgeServer(yes).running() as server:
    where = ("msvd-qa", tmp_path / "data", tmp_path / "out", server, tmp_path / "words.json")
    server.reply = lambda body: setattr(server, "troubles", [trouble] * 100) or yes(body)
    result = evaluate(*where)
    assert result["partial"] == "the judge gave no verdict on 2 of 3"
    assert result["details"]["judged"] == 1 and result["metrics"]["yes"] == 1
    [(said, count)] = result["details"]["judge"]["failures"].items()
    assert said.startswith(kind) and count == 4  # two tries of each
    server.troubles, server.reply = [], yes
    assert evaluate(*where)["metrics"]["yes"] == 3


def test_a_judge_that_is_not_there_at_all(tmp_path):
  benchmark_files.mmvet(tmp_path / "data")
  (tmp_path / "table.txt").write_text("examples\n")
  server = JudgeServer(yes)
  with server.running():
    server.dead = True
    result = evaluate("mmvet", tmp_path / "data", tmp_path / "out", server, tmp_path / "table.txt")
  assert result["metrics"] == {} and "no verdict on 3 of 3" in result["partial"]


def test_mmvet_is_judged(tmp_path):
  benchmark_files.mmvet(tmp_path / "data")
  (tmp_path / "table.txt").write_text("examples\n")
  replies = {"x in 0": "0.5", "x in 1": "1.0 |", "x in 2": "no idea"}

  def reply(body):
    return next(v for k, v in replies.items() if k in body["messages"][0]["content"])

  with JudgeServer(reply).running() as server:
    result = evaluate("mmvet", tmp_path / "data", tmp_path / "out", server, tmp_path / "table.txt")
  assert result["metrics"] == {"total": 50.0, "rec": 50.0, "ocr": 50.0, "gen": 0.0, "math": 50.0}
  assert result["categories"]["capability_sets"] == {"math_ocr": 50, "rec": 100, "gen_rec": 0}
  grades = json.loads((tmp_path / "out" / "grades.json").read_text())
  assert grades["v1_1"] == {"content": "1.0", "score": 1.0}
  assert json.loads((tmp_path / "out" / "submission.json").read_text())["v1_0"] == "said v1_0"
  contents = [body["messages"][0]["content"] for body in server.bodies]
  assert contents[0] == "examples\n\nWhat is x in 0? | -1 <AND> -5 | said v1_0 | "
  assert sum("x in 2" in text for text in contents) == 6


def test_judges_as_typed(tmp_path, capsys):
  benchmark_files.video_qa(tmp_path / "data")
  (tmp_path / "words.json").write_text(json.dumps(VIDEO_WORDS))
  answers = [{"id": f"v_{i}", "pred": "said"} for i in range(3)]
  (tmp_path / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers))
  with JudgeServer(yes).running() as server:
    typed = ["evaluate", "activitynet-qa", f"--predictions={tmp_path}/answers.jsonl",
             f"--data={tmp_path}/data", f"--output={tmp_path}/out", f"--judge_url={server.url}",
             "--judge_model=m", f"--judge_prompt={tmp_path}/words.json", "--judge_wait=0.01",
             "--judge_tries=2"]  # fmt: skip
    server.dead = True
    assert cli.run(typed) == 1
    assert "PARTIAL (the judge gave no verdict on 3 of 3)" in capsys.readouterr().out
    server.dead = False
    assert cli.run(typed) == 0
  printed = capsys.readouterr().out
  assert "PARTIAL" not in printed and "the judge is m" in printed and "51.6" in printed


def test_several_questions_are_under_way_at_once(tmp_path):
  gate = threading.Barrier(3, timeout=5)

  def reply(body):
    gate.wait()
    return "1"

  with JudgeServer(reply).running() as server:
    judge = Judge(settings(server, concurrency=3, timeout=5), tmp_path / "v.jsonl")
    assert judge.map(lambda i: judge.ask(ASK, attempt=i), range(3)) == ["1"] * 3


def test_words_to_judges_from_files(tmp_path):
  path = tmp_path / "p.json"
  path.write_text('{"system": "a", "user": "{question} {answer}"}')
  with pytest.raises(ValueError, match=r"lacks \{pred\}"):
    judge_prompts.video_qa(str(path))
  path.write_text('{"system": "a"}')
  with pytest.raises(ValueError, match="must hold"):
    judge_prompts.video_qa(str(path))
  with pytest.raises(ValueError, match="no judge prompt at"):
    judge_prompts.mmvet(str(tmp_path / "none"))
  filled = judge_prompts.render("{question}{answer}{pred}", "{answer}", "{pred}", "{x}")
  assert filled == "{answer}{pred}{x}"


def test_official_words_come_from_lmms_eval():
  if importlib.util.find_spec("lmms_eval") is None:
    with pytest.raises(ValueError, match="lmms-eval, which is not installed"):
      judge_prompts.mmvet(None)
    return
  table, is_official = judge_prompts.mmvet(None)
  assert is_official and hashlib.sha256(table.encode()).hexdigest() == judge_prompts.MMVET_SHA256
  assert judge_prompts.video_qa(None)[1]
