"""Attention over the ragged rows of an Arrow table: a stage for any engine that passes tables on.

`AttendBatch` takes a `pyarrow.Table` and gives one with a column more, so it is a stage of Ray
Data (`map_batches(..., batch_format="pyarrow")`), of Spark (`mapInArrow`) and of a plain loop over
Parquet alike. pyarrow comes with the extra `batch`: pip install 'onnx_attn[batch]'.
"""

from .stage import AttendBatch

__all__ = ["AttendBatch"]
