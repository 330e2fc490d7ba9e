"""What a method may raise: a broken promise of the interface, or a wish that cannot be had."""

from __future__ import annotations


class ContractError(Exception):
    """A method broke a promise of the interface; the message says which promise and what was seen."""


class RefusedError(Exception):
    """What was asked of a method cannot be had on this network; the message says why and what can be asked."""
