"""Imports on Apache Beam, for sources that are too large for one machine (extra `beam`).

The same function converts the same pieces as in a local import, and its files lie in the same
places, so an import may even begin here and end there. Machines, retries and scheduling are the
runner's; source and output must be where its workers reach them.
"""

from collections.abc import Iterator, Sequence

from vilau_jax.data import imports, pieces
from vilau_jax.data.pieces import Done, Piece, Task


def on_beam(options: Sequence[str]) -> imports.Executor:
  """An executor on a Beam runner.

  Args:
    options: Beam's command line, for example ["--runner=DataflowRunner", "--project=.."].

  Raises:
    ValueError: if Apache Beam is not installed.
  """
  try:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions
  except ImportError as error:
    raise ValueError("Apache Beam is missing: pip install -e '.[beam]'") from error

  def executor(task: Task, todo: Iterator[tuple[int, Piece]]) -> Iterator[Done]:
    waiting = list(todo)
    if not waiting:
      return
    with beam.Pipeline(options=PipelineOptions(list(options))) as pipeline:
      _ = (
        pipeline
        | "pieces" >> beam.Create(waiting)
        | "spread" >> beam.Reshuffle()
        | "convert" >> beam.Map(_convert, task)
      )
    for index, piece in waiting:
      done = pieces.read_done(task, index)
      if done is None:
        raise ValueError(f"{piece.name} was converted, but {task.directory} lacks its files")
      yield done

  return executor


def _convert(numbered: tuple[int, Piece], task: Task) -> int:
  index, piece = numbered
  return pieces.convert_piece(task, index, piece).records
