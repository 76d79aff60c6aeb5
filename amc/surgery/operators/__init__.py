"""What becomes of labels in each ATen operation. Rules are optimistic about sizes: the proof has the last word."""

from amc.surgery.operators import entrywise, parts, positions, products, sizes, sums
from amc.surgery.operators.registry import RULES

__all__ = ["RULES", "entrywise", "parts", "positions", "products", "sizes", "sums"]
