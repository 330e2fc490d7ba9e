"""The vocabulary methods are written in: the interface, and pure functions on tensors."""

from __future__ import annotations

from methods.core.base import Method, from_page
from methods.core.declared import (
    DONOR_KINDS,
    Budget,
    DenseGrads,
    Donor,
    Group,
    Inactive,
    Masks,
    Moments,
    Proposal,
    Rounds,
    Scoring,
    Stages,
    Timeline,
    Trains,
    Update,
)
from methods.core.distributions import DISTRIBUTIONS, erdos_renyi, erk, uniform, uniform_but_last
from methods.core.errors import ContractError, RefusedError
from methods.core.filters import check_scope, drop_filters, grow_filters, keep_filters, refuse_crowded
from methods.core.groups import GROUP, N_OF_M, check_pattern, describe_ungrouped, grow_in_groups, keep_n_of_m
from methods.core.masks import (
    all_active,
    count_active,
    count_layers,
    keep_top,
    keep_top_each,
    keep_top_evenly,
    keep_top_global,
    random_masks,
)
from methods.core.near import NearOutputs
from methods.core.rates import check_rate, sparsity_before
from methods.core.schedules import cosine, cubic, geometric, prune_progress, prune_range, update_range
from methods.core.scores import gradient_magnitude, grasp_scores, magnitude, random_scores, snip_scores
from methods.core.thresholds import find_shift, shift
from methods.core.topology import drop, grow, grow_global
from methods.core.view import View, count_kept

__all__ = [
    "DISTRIBUTIONS",
    "DONOR_KINDS",
    "GROUP",
    "N_OF_M",
    "Budget",
    "ContractError",
    "DenseGrads",
    "Donor",
    "Group",
    "Inactive",
    "Masks",
    "Method",
    "Moments",
    "NearOutputs",
    "Proposal",
    "RefusedError",
    "Rounds",
    "Scoring",
    "Stages",
    "Timeline",
    "Trains",
    "Update",
    "View",
    "all_active",
    "check_pattern",
    "check_rate",
    "check_scope",
    "cosine",
    "count_active",
    "count_layers",
    "count_kept",
    "cubic",
    "describe_ungrouped",
    "drop",
    "drop_filters",
    "erdos_renyi",
    "erk",
    "find_shift",
    "from_page",
    "geometric",
    "gradient_magnitude",
    "grasp_scores",
    "grow",
    "grow_filters",
    "grow_global",
    "grow_in_groups",
    "keep_filters",
    "keep_n_of_m",
    "keep_top",
    "keep_top_each",
    "keep_top_evenly",
    "keep_top_global",
    "magnitude",
    "prune_progress",
    "prune_range",
    "random_masks",
    "random_scores",
    "refuse_crowded",
    "shift",
    "snip_scores",
    "sparsity_before",
    "uniform",
    "uniform_but_last",
    "update_range",
]
