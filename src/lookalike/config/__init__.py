"""The models of conf/*.yaml: what a recipe may say, checked before anything starts.

Of the modules, `recipe` has the whole and how it is read, others a part each; all is imported from
here.
"""

from lookalike.config.backends import Mlflow, Spark, Warehouse
from lookalike.config.images import Duplicates, Images, Snapshots
from lookalike.config.index import Index
from lookalike.config.losses import (
    Auxiliary,
    Loss,
    MultiSimilarity,
    NormalisedSoftmax,
    SupervisedContrastive,
    Triplet,
)
from lookalike.config.quality import Evaluate, Gate
from lookalike.config.recipe import Config, load
from lookalike.config.search import Budget, Tune
from lookalike.config.serving import Serving
from lookalike.config.sources import (
    Data,
    Fetch,
    FolderData,
    IdxData,
    IdxFiles,
    ManifestData,
    Split,
    TableData,
    TextData,
    VectorsData,
)
from lookalike.config.training import Augment, Train, network_source, with_values

__all__ = [
    "Augment",
    "Auxiliary",
    "Budget",
    "Config",
    "Data",
    "Duplicates",
    "Evaluate",
    "Fetch",
    "FolderData",
    "Gate",
    "IdxData",
    "IdxFiles",
    "Images",
    "Index",
    "Loss",
    "ManifestData",
    "Mlflow",
    "MultiSimilarity",
    "NormalisedSoftmax",
    "Serving",
    "Snapshots",
    "Spark",
    "Split",
    "SupervisedContrastive",
    "TableData",
    "TextData",
    "Train",
    "Triplet",
    "Tune",
    "VectorsData",
    "Warehouse",
    "load",
    "network_source",
    "with_values",
]
