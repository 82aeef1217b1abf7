"""The rasteriser compiled for the processor."""

from models.rendering.rasterize_torch import rasterize_ids_torch as rasterize_ids_numba

__all__ = ["rasterize_ids_numba"]
