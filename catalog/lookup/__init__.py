"""The questions asked of a catalog: what is similar, how uniform is a meaning, what may work on a new image."""

from catalog.lookup.ask import By, Filters
from catalog.lookup.similarity import Similar, SimilarPage, similar, similar_page, similar_to
from catalog.lookup.transfer import Transfer, transfer_candidates
from catalog.lookup.uniformity import (
    DirectionHomogeneity,
    Homogeneity,
    NearestOnImage,
    Spread,
    homogeneity,
    homogeneity_of,
)

__all__ = [
    "By",
    "DirectionHomogeneity",
    "Filters",
    "Homogeneity",
    "NearestOnImage",
    "Similar",
    "SimilarPage",
    "Spread",
    "Transfer",
    "homogeneity",
    "homogeneity_of",
    "similar",
    "similar_page",
    "similar_to",
    "transfer_candidates",
]
