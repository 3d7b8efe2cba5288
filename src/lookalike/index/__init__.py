"""Vectors to neighbours, with faiss; string ids, labels and attributes in Arrow."""

from lookalike.index.build import build
from lookalike.index.neighbours import Neighbour, Neighbours
from lookalike.index.plan import Plan
from lookalike.index.planner import Wishes
from lookalike.index.search import Index, Selection

__all__ = ["Index", "Neighbour", "Neighbours", "Plan", "Selection", "Wishes", "build"]
