"""The feature store on disk, and the sets of features that a trial is trained and judged on."""

from causal_tune.features.known import KnownFeatures, read_sources, stores_of_the_same_features
from causal_tune.features.sets import FeatureSet, Partition, StudyData, load_study_data, partition
from causal_tune.features.shards import (
    ROW_COLUMNS,
    STORE_FORMAT,
    VIEW_COLUMNS,
    Piece,
    ShardReport,
    merge_pieces,
    piece_path,
    pieces,
    read_shard,
    read_shard_report,
    shard_path,
    shard_ranges,
    write_shard,
)
from causal_tune.features.store import FeatureStore, StoreSpec, finish_store, shard_paths

__all__ = [
    "ROW_COLUMNS",
    "STORE_FORMAT",
    "VIEW_COLUMNS",
    "FeatureSet",
    "FeatureStore",
    "KnownFeatures",
    "Partition",
    "Piece",
    "ShardReport",
    "StoreSpec",
    "StudyData",
    "finish_store",
    "load_study_data",
    "merge_pieces",
    "partition",
    "piece_path",
    "pieces",
    "read_shard",
    "read_shard_report",
    "read_sources",
    "shard_path",
    "shard_paths",
    "shard_ranges",
    "stores_of_the_same_features",
    "write_shard",
]
