"""Secrets of the environment, such as W&B's key: kept out of whatever is printed, logged or recorded."""

from __future__ import annotations

import json
import os
import re

SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL", re.I)
SHORTEST = 8  # characters; a shorter value would be found by chance


def find_secrets() -> dict[str, str]:
    """Return the secret values of the environment, by what their names say, each with its variable's name.

    As they are without spaces around them, and as they are written within JSON.
    """
    found = {value.strip(): name for name, value in os.environ.items() if SECRET.search(name)}
    known = {value: name for value, name in found.items() if len(value) >= SHORTEST}
    return known | {
        json.dumps(value, ensure_ascii=plain)[1:-1]: known[value] for value in known for plain in (False, True)
    }


def hide_secrets(text: str) -> str:
    """Return `text` with every secret replaced by its variable, as `(WANDB_API_KEY)`; the longest first."""
    for value, name in sorted(find_secrets().items(), key=lambda item: -len(item[0])):
        text = text.replace(value, f"({name})")
    return text


def name_secret(text: str) -> str:
    """Return the name of a variable whose secret is in `text`, or an empty text."""
    return next((name for value, name in find_secrets().items() if value in text), "")
