"""What is claimed of a GPU: each claim with its limit, and the figures that a part of the check tells."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmark.perf.goals import Goal
from leaderboard.store.files import write_atomically

RUNNING, DONE, FAILED, LATE, ABSENT = "running", "done", "failed", "out of time", "not measured"


class NotHereError(Exception):
    """What a part measures does not exist on this device."""


@dataclass(frozen=True)
class Claim:
    """A goal of the card. `part` measures it; `sized`: it is of full-size networks, so small ones say nothing of it."""

    goal: str
    what: str
    relation: str
    limit: float
    unit: str
    part: str
    sized: bool = True


STEPS = {"eager": 1.03, "as CUDA graphs": 1.05}  # most that a masked step may take of a dense one
EPOCH_S = {"ResNet-20": 0.5, "VGG-19": 1.0, "ResNet-50": 5.0}
CLAIMS = (
    Claim("masks", "methods that choose other masks than on the CPU from the same input", "<=", 0, "", "masks", False),
    Claim("masks", "VGG-19: choices that differ from the CPU's on the same input", "<=", 0, "", "masks"),
    Claim("bits", "tensors that differ between two runs", "<=", 0, "", "bits", False),
    Claim("bits", "tensors that differ after an interruption", "<=", 0, "", "bits", False),
    Claim("bits", "tensors that CUDA graphs change", "<=", 0, "", "bits", False),
    *(
        Claim("G1", f"{net}: masked step / dense step, {how}", "<=", most, "x", "steps")
        for net in EPOCH_S
        for how, most in STEPS.items()
    ),
    Claim("G2", "ResNet-20: eager step / the same as CUDA graphs", ">=", 2, "x", "steps"),
    *(Claim("G2", f"{net}: an epoch of 50,000 images", "<=", most, "s", "epochs") for net, most in EPOCH_S.items()),
    Claim("G2", "ResNet-50 at 224: images a second in training", ">=", 3000, "/s", "imagenet"),
    Claim("G3", "ResNet-50: a mask update", "<=", 20, "ms", "updates"),
    Claim("G3", "ResNet-50: a mask update / an eager step", "<=", 2, "x", "updates"),
    Claim("G3", "ResNet-20: 4 runs on streams / one, images a second", ">=", 2, "x", "sharing"),
    Claim("P12", "waits of the host in an ordinary step", "<=", 0, "", "waits", False),
    Claim("P12", "waits of the host in a mask update", "<=", 2, "", "waits", False),
    Claim("P14", "ResNet-50: memory of an update / weights", "<=", 1.75, "x", "updates"),
    *(Claim("plan", f"{net}: memory of a run / what was planned", "<=", 1, "x", "memory") for net in EPOCH_S),
    Claim("ViT", "values outside the masks that are not zero", "<=", 0, "", "vit", False),
    Claim("ViT", "tensors that differ between two runs", "<=", 0, "", "vit", False),
)


@dataclass
class Sheet:
    """What one part has told so far, kept in its file from the first figure on: what is cut short loses nothing."""

    path: Path
    part: str
    about: dict[str, Any]  # what the figures hold for: device, sizes, code
    quick: bool = False
    status: str = RUNNING
    reason: str = ""
    doing: str = ""  # while it runs
    goals: list[Goal] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)

    def tell(
        self, goal: str, what: str, measured: float, unit: str = "x", details: dict[str, Any] | None = None
    ) -> None:
        """Keep a figure; it has a limit where it is claimed, and none of full-size networks where sizes are small."""
        claims = [claim for claim in CLAIMS if (claim.goal, claim.what) == (goal, what)]
        more = {"details": details or {}}
        if claims and not (self.quick and claims[0].sized):
            claim = claims[0]
            told = Goal(goal, what, float(measured), claim.relation, claim.limit, claim.unit, **more)
        else:
            told = Goal(goal, what, float(measured), "", 0.0, claims[0].unit if claims else unit, **more)
        if not math.isfinite(told.measured):
            raise ArithmeticError(f"{what}: measured {told.measured}")
        self.goals.append(told)
        self.write()

    def do(self, what: str) -> None:
        """Keep what the part does from now on: why it has no figure if it is stopped there."""
        self.doing = what
        print(what, flush=True)  # into its log
        self.write()

    def end(self, status: str, reason: str = "") -> None:
        """Keep how the part ended."""
        self.status, self.reason, self.doing = status, reason, ""
        self.write()

    def write(self) -> None:
        """Write the part's file."""
        content = {
            "part": self.part,
            "status": self.status,
            "reason": self.reason,
            "doing": self.doing,
            "seconds": round(time.monotonic() - self.began, 1),
            "about": self.about,
            "facts": self.facts,
            "goals": [goal.as_dict() for goal in self.goals],
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, (json.dumps(content, indent=1) + "\n").encode())
