"""The same set under Ray Data: actors on every core of a machine or a cluster.

    pip install 'onnx_attn[batch]' 'ray[data]'
    python examples/batch/ray_data.py data out --actors 2

The stage is the one of plain.py: AttendBatch, made once in each actor. Ray reads, hands out,
starts an actor again that died, and writes. A run that was stopped goes on where it was: the ids
that are written are kept in OUT.done, and their rows are not computed again.
"""

from __future__ import annotations

import argparse
import re
import time
from pathlib import Path

import pyarrow.parquet as pq
import ray
from ray.data import ActorPoolStrategy, DataContext
from ray.data.checkpoint import CheckpointConfig
from ray.exceptions import RayTaskError

from onnx_attn import InputError, OnnxAttnError
from onnx_attn.batch import AttendBatch

# Rows handed to a call of the stage, as in plain.py.
ROWS = 256
# What an actor takes of a CPU's time: one thread computes.
CPUS_PER_ACTOR = 1
# Ray starts actors first, and reads and writes with what CPUs are left.
CPUS_TO_READ = 1


class Attend(AttendBatch):
    """AttendBatch that hands on the id and the result: what is written."""

    def __call__(self, table):
        return super().__call__(table).select(["id", "output"])


def check_cpus(actors: int) -> None:
    """Raise InputError where actors would leave no CPU to read with: Ray would wait for ever."""
    there = int(ray.cluster_resources().get("CPU", 0))
    needed = actors * CPUS_PER_ACTOR + CPUS_TO_READ
    if needed > there:
        raise InputError(
            f"{actors} actors of {CPUS_PER_ACTOR} CPU and {CPUS_TO_READ} CPU to read and "
            f"write need {needed} CPUs; Ray has {there}. Give fewer --actors"
        )


def attend(
    model: Path,
    data: Path,
    out: Path,
    actors: int,
    rows: int = ROWS,
    stage: type[AttendBatch] = Attend,
) -> None:
    """Attend over every file of `data` and write Parquet files into `out`.

    Raises OnnxAttnError for a row that the stage refuses: Ray ends the run, and what was written
    until then stays.
    """
    check_cpus(actors)
    context = DataContext.get_current()
    # Which ids are written; a file's ids count once the file is whole.
    context.checkpoint_config = CheckpointConfig(
        id_column="id",
        checkpoint_path=str(out.absolute()) + ".done",
        delete_checkpoint_on_success=False,
    )
    # Ray packs small files into one block, whatever override_num_blocks says (2.60), and one actor
    # would do all the work: blocks of as many rows as a call takes go to whoever is free.
    dataset = ray.data.read_parquet(str(data)).repartition(target_num_rows_per_block=rows)
    attended = dataset.map_batches(
        stage,
        fn_constructor_args=(str(model.absolute()),),
        fn_constructor_kwargs={"value": "value"},
        batch_format="pyarrow",
        batch_size=rows,
        compute=ActorPoolStrategy(size=actors),
        num_cpus=CPUS_PER_ACTOR,
    )
    try:
        attended.write_parquet(str(out))
    except RayTaskError as failed:
        # Ray hands on the text of what the stage raised, not the exception.
        said = re.search(r"^onnx_attn\.errors\.\w+: (.+)", str(failed), re.MULTILINE)
        if said is None:
            raise
        raise OnnxAttnError(said[1]) from failed


def rows_written(out: Path) -> int:
    """Rows whose files are whole; Ray names others `.pending`, and removes them at the next run."""
    done = Path(str(out) + ".done").glob("*.parquet")
    return sum(pq.read_metadata(path).num_rows for path in done if ".pending" not in path.name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", type=Path, help="by default attention.onnx beside DATA")
    parser.add_argument("--actors", type=int, default=1)
    parser.add_argument("--rows", type=int, default=ROWS, help="rows of a block and of a call")
    parser.add_argument("--cpus", type=int, help="CPUs of a local Ray; by default all there are")
    given = parser.parse_args()
    model = given.model or given.data.parent / "attention.onnx"
    ray.init(num_cpus=given.cpus, log_to_driver=False)
    before, start = rows_written(given.out), time.perf_counter()
    if before:
        print(f"{before} rows are there already")
    try:
        attend(model, given.data, given.out, given.actors, given.rows)
    except OnnxAttnError as error:
        parser.exit(2, f"error: {error}\n")
    took = time.perf_counter() - start
    computed = rows_written(given.out) - before
    print(f"{computed} rows computed in {took:.1f} s, {computed / took:.0f} rows/s")


if __name__ == "__main__":
    main()
