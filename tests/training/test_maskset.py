"""Promises of the one place where topology changes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmark.training.masks import MaskSet, pack_all, zero_outside
from methods.core import ContractError


def make_set() -> tuple[MaskSet, nn.Parameter, nn.Parameter]:
    a = nn.Parameter(torch.arange(1.0, 7.0).reshape(2, 3))
    b = nn.Parameter(torch.arange(1.0, 5.0))
    return MaskSet({"a": a, "b": b}), a, b


def proposal(a: list[list[int]], b: list[int]) -> dict[str, torch.Tensor]:
    return {"a": torch.tensor(a, dtype=torch.bool), "b": torch.tensor(b, dtype=torch.bool)}


def test_commit_zeroes_exactly_the_inactive_weights():
    masks, a, b = make_set()
    masks.commit(proposal([[1, 0, 1], [0, 0, 1]], [0, 1, 0, 0]), 4)
    assert a.tolist() == [[1, 0, 3], [0, 0, 6]]
    assert b.tolist() == [0, 2, 0, 0]
    assert masks.counts() == {"a": 3, "b": 1}
    assert masks.active() == 4


def test_a_grown_weight_starts_at_zero_with_zero_momentum_and_a_regrown_one_keeps_both():
    masks, a, _ = make_set()
    optimizer = torch.optim.SGD([a], lr=0.1, momentum=0.9)
    masks.commit(proposal([[1, 1, 0], [1, 1, 1]], [1, 1, 1, 1]), None)
    a.grad = torch.ones_like(a)
    masks.mask_gradients()
    optimizer.step()
    value, momentum = a[0, 0].item(), optimizer.state[a]["momentum_buffer"][0, 0].item()
    # position (0, 0) was dropped and regrown within the update, (0, 2) is new, (0, 1) goes
    masks.commit(proposal([[1, 0, 1], [1, 1, 1]], [1, 1, 1, 1]), None, optimizer)
    assert a[0, 0].item() == value
    assert optimizer.state[a]["momentum_buffer"][0].tolist() == [momentum, 0.0, 0.0]
    assert a[0].tolist() == [value, 0.0, 0.0]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda p: p.pop("b"), "missing \\['b'\\]"),
        (lambda p: p.update(c=p["b"]), "unknown \\['c'\\]"),
        (lambda p: p.update(a=p["a"].float()), "bool tensors, that of 'a' is torch.float32"),
        (lambda p: p.update(a=p["a"].T), "must have shape \\(2, 3\\), it has \\(3, 2\\)"),
        (lambda p: p["b"].__setitem__(0, False), "exactly 4 of 10 weights here, keeps 3"),
    ],
)
def test_a_broken_proposal_is_refused_and_changes_nothing(fault, message):
    masks, a, b = make_set()
    before = a.tolist(), b.tolist(), masks.sha256()
    proposed = proposal([[1, 0, 1], [0, 0, 1]], [1, 0, 0, 0])
    fault(proposed)
    with pytest.raises(ContractError, match=message):
        masks.commit(proposed, 4)
    assert (a.tolist(), b.tolist(), masks.sha256()) == before


def test_masks_for_arithmetic_have_the_weights_memory_format():
    weight = nn.Parameter(torch.randn(8, 4, 3, 3).contiguous(memory_format=torch.channels_last))
    factor = MaskSet({"w": weight}).factors[0]
    assert factor.stride() == weight.stride()
    assert factor.dtype == weight.dtype


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_whatever_stood_at_an_inactive_weight_becomes_plain_zero(dtype):
    tensor = torch.tensor([-1.5, -0.0, float("inf"), float("nan"), -2.0, -0.0], dtype=dtype)
    zero_outside(torch.tensor([False, False, False, False, True, True]), tensor)
    assert tensor.tolist() == [0, 0, 0, 0, -2, 0]
    assert torch.signbit(tensor).tolist() == [False] * 4 + [True, True]


def test_the_explored_share_counts_weights_ever_in_force_and_comes_back():
    def put(masks: MaskSet, *bits: int) -> float:
        masks.commit({"w": torch.tensor(bits).bool()}, None)
        return masks.explored_share()

    masks, again = (MaskSet({"w": nn.Parameter(torch.ones(9))}) for _ in range(2))
    assert masks.explored_share() == 0.0  # although every mask is True: none is in force yet
    taken = (1, 1, 0, *[0] * 6), (0, 1, 1, *[0] * 6), (1, 1, 0, *[0] * 6), (*[0] * 8, 1)
    assert [put(masks, *bits) for bits in taken] == [2 / 9, 3 / 9, 3 / 9, 4 / 9]
    with pytest.raises(ContractError, match="exactly 1 of 9"):
        masks.commit({"w": torch.ones(9).bool()}, 1)
    assert masks.explored_share() == 4 / 9
    packed = pack_all(masks.explored)
    assert packed["w"].numel() == 2  # eight weights to a byte
    again.load_packed(masks.packed())
    assert again.explored_share() == 0.0  # masks that are loaded are not new to the run
    again.load_explored(packed)
    assert torch.equal(again.explored["w"], masks.explored["w"])
    assert put(masks, *[1] * 9) == put(masks, 1, *[0] * 8) == 1.0
