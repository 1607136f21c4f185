"""The same set under Ray Data: actors on every core of a machine or a cluster.

    pip install 'onnx_attn[batch]' 'ray[data]'
    python examples/batch/ray_data.py data out --actors 2

The stage is the one of plain.py: AttendBatch, made once in each actor. Ray reads, hands out,
starts an actor again that died, and writes. A run that was stopped goes on where it was: the ids
that are written are kept in OUT.done, and their rows are not computed again.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import ray
from ray.data import ActorPoolStrategy, DataContext
from ray.data.checkpoint import CheckpointConfig

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
    """End with an error where actors would leave no CPU to read with: Ray would wait for ever."""
    there = int(ray.cluster_resources().get("CPU", 0))
    needed = actors * CPUS_PER_ACTOR + CPUS_TO_READ
    if needed > there:
        raise SystemExit(
            f"error: {actors} actors of {CPUS_PER_ACTOR} CPU and {CPUS_TO_READ} CPU to read and "
            f"write need {needed} CPUs; Ray has {there}. Give fewer --actors"
        )


def attend(model: Path, data: Path, out: Path, actors: int, blocks: int, rows: int = ROWS) -> None:
    """Attend over every file of `data` and write Parquet files into `out`."""
    check_cpus(actors)
    context = DataContext.get_current()
    # Which ids are written; a file's ids count once the file is whole.
    context.checkpoint_config = CheckpointConfig(
        id_column="id",
        checkpoint_path=str(out.absolute()) + ".done",
        delete_checkpoint_on_success=False,
    )
    # Small files would be packed into one block, and one actor would do all the work.
    ray.data.read_parquet(str(data), override_num_blocks=blocks).map_batches(
        Attend,
        fn_constructor_args=(str(model.absolute()),),
        fn_constructor_kwargs={"value": "value"},
        batch_format="pyarrow",
        batch_size=rows,
        compute=ActorPoolStrategy(size=actors),
        num_cpus=CPUS_PER_ACTOR,
    ).write_parquet(str(out))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", type=Path, help="by default attention.onnx beside DATA")
    parser.add_argument("--actors", type=int, default=1)
    parser.add_argument("--blocks", type=int, default=16, help="pieces of work, at least")
    parser.add_argument("--rows", type=int, default=ROWS, help="rows of a call of the stage")
    given = parser.parse_args()
    model = given.model or given.data.parent / "attention.onnx"
    ray.init(log_to_driver=False)
    start = time.perf_counter()
    attend(model, given.data, given.out, given.actors, given.blocks, given.rows)
    print(f"{time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    main()
