"""The vocabulary methods are written in: the interface, and pure functions on tensors."""

from __future__ import annotations

from methods.core.base import (
    DONOR_KINDS,
    Budget,
    ContractError,
    DenseGrads,
    Donor,
    Group,
    Masks,
    Method,
    Scoring,
    Stages,
    Timeline,
    View,
    count_kept,
    from_page,
)
from methods.core.distributions import DISTRIBUTIONS, erdos_renyi, erk, uniform
from methods.core.masks import all_active, count_active, keep_top, keep_top_global, random_masks
from methods.core.schedules import cosine, cubic, prune_progress, prune_range, update_range
from methods.core.scores import gradient_magnitude, grasp_scores, magnitude, random_scores, snip_scores
from methods.core.topology import drop, grow

__all__ = [
    "DISTRIBUTIONS",
    "DONOR_KINDS",
    "Budget",
    "ContractError",
    "DenseGrads",
    "Donor",
    "Group",
    "Masks",
    "Method",
    "Scoring",
    "Stages",
    "Timeline",
    "View",
    "all_active",
    "cosine",
    "count_active",
    "count_kept",
    "cubic",
    "drop",
    "erdos_renyi",
    "erk",
    "from_page",
    "gradient_magnitude",
    "grasp_scores",
    "grow",
    "keep_top",
    "keep_top_global",
    "magnitude",
    "prune_progress",
    "prune_range",
    "random_masks",
    "random_scores",
    "snip_scores",
    "uniform",
    "update_range",
]
