"""The rows of the quickstart's ablations name fields that exist, and each is another experiment."""

import pytest

from vilau_jax.bench import ablations
from vilau_jax.train import defaults, step


@pytest.mark.parametrize("stage", ablations.ROWS)
def test_every_row_is_an_experiment_of_its_own(stage):
  seen = []
  known = {"model.llm.vocab_size": 512, "model.tower.text.vocab_size": 512}  # by the tokenizers
  for changes in ablations.ROWS[stage].values():
    config = ablations.experiment(stage, changes | known, "runs/quickstart", 0.25, 1)
    defaults.check(config)
    model = step.planned_model(config)
    assert config.seed == 1 and config.steps == round(0.25 * {"tower": 1550, "lm": 1260}[stage])
    one = (config.to_json_best_effort(sort_keys=True), model)
    assert one not in seen
    seen.append(one)


def test_rows_are_chosen_by_words():
  assert list(ablations.chosen("lm", ["next cell", "restart"])) == [
    "as it is", "no embedding of the next cell"
  ]  # fmt: skip
  assert ablations.chosen("tower", None) == ablations.ROWS["tower"]
  with pytest.raises(ValueError, match="--names=muon: no row has it"):
    ablations.chosen("lm", ["muon"])


def test_tables_have_a_line_for_every_row():
  rows = {"as it is": {"a, %": 12.345, "minutes": 1.0}, "without": {"a, %": 1.0, "minutes": 2.0}}
  assert ablations.table(rows) == (
    "| | a, % | minutes |\n|---|---|---|\n| as it is | 12.3 | 1 |\n| without | 1 | 2 |"
  )
