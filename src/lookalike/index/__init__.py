"""Vectors to neighbours, with faiss; string ids and labels in Arrow."""

from lookalike.index.build import Plan, build
from lookalike.index.search import Index, Neighbour

__all__ = ["Index", "Neighbour", "Plan", "build"]
