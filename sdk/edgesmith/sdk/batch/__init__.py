"""A bundle over an archive: a row an image, in Parquet or JSON lines, resumable at any moment.

    source -> shards -> workers (processes, or a Ray cluster) -> a part file a shard -> one result file

A part is written under another name and renamed, so it is whole or not there; a run that was cut off goes on
with the shards that have none.
"""

from edgesmith.sdk.batch.job import BatchReport, Job
from edgesmith.sdk.batch.rows import Options

__all__ = ["BatchReport", "Job", "Options"]
