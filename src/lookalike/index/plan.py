"""How vectors are kept, and what that takes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final, Literal

from lookalike.errors import ConfigError
from lookalike.index.metric import Metric

Kind = Literal["exact", "hnsw", "ivf_flat", "ivf_sq8", "ivf_pq", "kd_tree"]
KINDS: Final[tuple[Kind, ...]] = ("exact", "hnsw", "ivf_flat", "ivf_sq8", "ivf_pq", "kd_tree")
IVF: Final = ("ivf_flat", "ivf_sq8", "ivf_pq")
CODED: Final = ("ivf_sq8", "ivf_pq")
"""Kinds that keep codes in place of vectors."""


@dataclass(frozen=True)
class Plan:
    """How vectors are kept, and how hard is looked for them.

    Attributes:
        kind: 'exact' compares with every vector; 'hnsw' walks a graph (Malkov and Yashunin 2016);
            'ivf_flat', 'ivf_sq8' and 'ivf_pq' look into the nearest of `nlist` cells, whose
            vectors are whole, of 8 bits a component, or product-quantised (Jegou et al. 2011)
            after a rotation (OPQ, Ge et al. 2013); 'kd_tree' is exact, for few dimensions.
        m: neighbours of a node of the graph.
        ef_construction: candidates while building the graph.
        ef_search: candidates while searching it; at least k are taken.
        nlist: cells; 0 for 4 times the root of the number of items.
        nprobe: cells that a search looks into.
        pq_bytes: bytes of a product-quantised vector; at most one a dimension.
        rerank: candidates, in multiples of k, whose distances are computed again from vectors
            kept as float16 beside the codes; 0 keeps codes alone.
    """

    kind: Kind = "hnsw"
    m: int = 16
    ef_construction: int = 100
    ef_search: int = 64
    nlist: int = 0
    nprobe: int = 16
    pq_bytes: int = 16
    rerank: int = 4

    @property
    def effort(self) -> int:
        """What a search spends: `ef_search` or `nprobe`; 1 where there is nothing to choose."""
        if self.kind == "hnsw":
            return self.ef_search
        return self.nprobe if self.kind in IVF else 1

    def with_effort(self, effort: int) -> Plan:
        """The plan, with another query effort."""
        if self.kind == "hnsw":
            return replace(self, ef_search=effort)
        return replace(self, nprobe=effort) if self.kind in IVF else self

    def settled(self, count: int, dim: int, metric: Metric) -> Plan:
        """The plan for so many vectors, with its numbers where they are possible.

        Raises:
            ConfigError: a k-d tree by dot product, which is no distance that a tree can prune by.
        """
        if self.kind == "kd_tree" and metric == "dot":
            raise ConfigError(
                "a k-d tree cannot search by dot product",
                allowed="cosine or l2, or another index.kind",
            )
        if self.kind not in IVF:
            return self
        cells = self.nlist or round(4 * math.sqrt(count))
        cells = max(1, min(cells, count // 8))
        code = min(self.pq_bytes, dim)
        return replace(self, nlist=cells, nprobe=min(self.nprobe, cells), pq_bytes=code)

    @property
    def keeps_originals(self) -> bool:
        """Whether float16 vectors lie beside the codes."""
        return self.kind in CODED and self.rerank > 0

    def bytes_of(self, count: int, dim: int) -> int:
        """What so many vectors take, ids apart; of a k-d tree in memory, as its file has fewer."""
        match self.kind:
            case "hnsw":  # 2m links below, m/(m - 1) levels above on average, level and offset
                a_vector = 4.0 * dim + 8 * self.m + 4 * self.m / (self.m - 1) + 12
            case "ivf_flat":
                a_vector = 4 * dim + 8
            case "ivf_sq8":
                a_vector = dim + 8
            case "ivf_pq":
                a_vector = self.pq_bytes + 8
            case "kd_tree":  # a copy in doubles, with two dimensions more, and an order
                a_vector = 4 * dim + 8 * (dim + 2) + 16
            case _:
                a_vector = 4 * dim
        whole = count * (a_vector + (2 * dim if self.keeps_originals else 0))
        if self.kind in IVF:
            whole += 4 * dim * self.settled(count, dim, "l2").nlist
        if self.kind == "ivf_pq":  # the rotation, and 256 centroids of each piece
            whole += 4 * dim * (dim + 256)
        return int(whole)
