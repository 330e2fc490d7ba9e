"""Opening Weights & Biases for runs and the leaderboard, with its own environment variables and short timeouts.

WANDB_PROJECT, WANDB_ENTITY, WANDB_RUN_GROUP, WANDB_TAGS, WANDB_NOTES, WANDB_DIR, WANDB_BASE_URL and W&B's other
variables override the defaults here. WANDB_MODE and WANDB_DISABLED can only reduce what was asked for: a run asked to
stay offline never goes online.
"""

from __future__ import annotations

import os
import socket
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

from leaderboard.store.privacy import hide_secrets

MODES = ("off", "offline", "online")
SERVER = "https://api.wandb.ai"
REACH_S = 5.0  # for a connection to the server, DNS included; after that it counts as unreachable
INIT_S = 20  # for the server to open a run
FINISH_S = 30.0  # to finish uploading at the end of a run; the rest stays in its files
KEYS = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")
# W&B would keep the command line and machine facts, and any secret in them.
PRIVATE = {"silent": True, "console": "off", "disable_code": True, "x_disable_meta": True}

Warn = Callable[[str], None]


def choose_mode(asked: str, warn: Warn) -> str:
    """Return one of MODES: what was asked, or less if WANDB_MODE or WANDB_DISABLED says so."""
    mode = os.environ.get("WANDB_MODE", "").strip().lower()
    disabled = os.environ.get("WANDB_DISABLED", "").strip().lower() in ("1", "true", "yes", "on")
    if asked == "off":
        return asked
    if disabled or mode == "disabled":
        warn(f"W&B: nothing is logged, as {'WANDB_DISABLED' if disabled else 'WANDB_MODE'} says")
        return "off"
    return "offline" if mode in ("offline", "dryrun") else asked


def open_session(wandb: Any, mode: str, folder: Path, warn: Warn, more: Mapping[str, Any], **arguments: Any) -> Any:
    """Return a new W&B run. Online without a key, or with an unreachable server, it becomes offline.

    `folder` is where W&B writes, `more` are further settings, `arguments` are those of `wandb.init`, where None leaves
    the choice to W&B. `warn` gets one line, with the folder, if an online run becomes offline.
    """
    reason = ""
    if mode == "online":
        try:
            reason = find_obstacle(wandb)
            if not reason:
                return init(wandb, mode, folder, more, arguments)
        except Exception as error:  # of many kinds: no answer, no permission, no such project
            reason = hide_secrets(f"{type(error).__name__}: {error}")
    run = init(wandb, "offline", folder, more, arguments)
    if reason:
        warn(f"W&B: {reason}, so the run is logged offline; {where_to_sync(run, folder)}")
    return run


def where_to_sync(run: Any, folder: Path) -> str:
    """Return how to upload a run later: the command with its folder."""
    where = getattr(getattr(run, "settings", None), "sync_dir", None) or folder / "wandb"
    return f"upload it later with: wandb sync {where}"


def find_obstacle(wandb: Any) -> str:
    """Return why nothing can be logged online now, or an empty text."""
    if not any(os.environ.get(key) for key in KEYS) and not wandb.api.api_key:
        return "no key is set"
    url = find_server(wandb)
    return "" if is_reachable(url) else f"{url} cannot be reached"


def find_server(wandb: Any) -> str:
    """Return the server that W&B would use, from its environment or settings file."""
    return os.environ.get("WANDB_BASE_URL") or str(wandb.setup().settings.base_url or SERVER)


def is_reachable(url: str, wait_s: float = REACH_S) -> bool:
    """Return whether a connection to the server of `url`, or to the proxy in between, opens within `wait_s` seconds."""
    address = urlsplit(url)
    proxy = urllib.request.getproxies().get(address.scheme)
    if proxy and not urllib.request.proxy_bypass(address.hostname or ""):
        address = urlsplit(proxy if "//" in proxy else f"//{proxy}")
    answers: list[bool] = []

    def connect() -> None:
        try:
            port = address.port or {"http": 80}.get(address.scheme, 443)
            socket.create_connection((address.hostname or "", port), wait_s).close()
            answers.append(True)
        except (OSError, ValueError):
            answers.append(False)

    thread = Thread(target=connect, daemon=True)  # DNS may take longer and has no timeout
    thread.start()
    thread.join(wait_s)
    return answers == [True]


def init(wandb: Any, mode: str, folder: Path, more: Mapping[str, Any], arguments: Mapping[str, Any]) -> Any:
    """Open a run; the variables of W&B's environment win over what is a default here."""
    own = default("WANDB_DIR", str(folder))
    if own is not None:
        folder.mkdir(parents=True, exist_ok=True)
    settings = {**PRIVATE, **more}
    if default("WANDB_INIT_TIMEOUT", INIT_S) is not None:
        settings["init_timeout"] = INIT_S
    known = getattr(wandb.Settings, "model_fields", {})
    if "finish_timeout" in known and default("WANDB_FINISH_TIMEOUT", FINISH_S) is not None:
        settings |= {"finish_timeout": FINISH_S, "finish_timeout_raises": True}
    return wandb.init(
        project=default("WANDB_PROJECT", "sparse-bench"),
        dir=own,
        mode=mode,
        settings=wandb.Settings(**settings),
        **arguments,
    )


def default(variable: str, value: Any) -> Any:
    """Return `value`, or None if an environment variable decides."""
    return None if os.environ.get(variable) else value
