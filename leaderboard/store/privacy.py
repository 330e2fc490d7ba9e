"""Secrets of the environment, such as W&B's key: kept out of whatever is printed, logged or recorded."""

from __future__ import annotations

import os
import re

SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL", re.I)
SHORTEST = 8  # characters; a shorter value would be found by chance


def find_secrets() -> dict[str, str]:
    """Return the values of the environment that its names call secret, each with the name of its variable."""
    return {value: name for name, value in os.environ.items() if SECRET.search(name) and len(value.strip()) >= SHORTEST}


def hide_secrets(text: str) -> str:
    """Return `text` with the name of the variable in place of every secret, as `(WANDB_API_KEY)`; the longest first."""
    for value, name in sorted(find_secrets().items(), key=lambda item: -len(item[0])):
        text = text.replace(value, f"({name})")
    return text


def name_secret(text: str) -> str:
    """Return the name of a variable whose secret is in `text`, or nothing."""
    return next((name for value, name in find_secrets().items() if value in text), "")
