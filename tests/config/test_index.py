"""What a recipe says of the index."""

from lookalike.config import Index
from lookalike.index import Plan, Wishes
from lookalike.index.plan import KINDS


def test_the_index_is_what_its_builder_takes() -> None:
    wishes = Wishes(**Index().parameters)
    assert wishes == Wishes()
    for kind in KINDS:
        assert Plan(**Index(kind=kind).parameters) == Plan(kind)
    pq = Index(kind="ivf_pq", nlist=50, pq_bytes=8, rerank=0)
    assert Plan(**pq.parameters) == Plan("ivf_pq", nlist=50, pq_bytes=8, rerank=0)
    assert set(Index.model_fields["kind"].annotation.__args__) == {"auto", *KINDS}
