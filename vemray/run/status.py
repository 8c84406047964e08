"""`vemray status`: what the ledger says of a run, from any machine."""

from __future__ import annotations

import time

from vemray.errors import InputError
from vemray.plan.cost import duration
from vemray.store import access
from vemray.store.ledger import LEASE_SECONDS
from vemray.store.table import read_json

#: exit codes of `vemray status`
CODES = {"done": 0, "running": 0, "failed": 1, "interrupted": 130, "lost": 1}


def read_status(url: str) -> dict:
    """The status record; 'state' becomes 'lost' when a running one has been silent for LEASE_SECONDS."""
    access.reach(url)
    try:
        s = read_json(access.join(url, "ledger", "status.json"))
    except FileNotFoundError:
        raise InputError(f"{url} is not the output of a run: it has no ledger/status.json.") from None
    if s["state"] == "running" and time.time() - s["beat"] > LEASE_SECONDS:
        s["state"] = "lost"
    return s


def describe(url: str) -> tuple[str, int]:
    s = read_status(url)
    age = time.time() - s["beat"]
    head = f"{s['recipe']}: {s['state']}, last sign of life {duration(age)} ago"
    if s["state"] == "lost":
        head += ". The driver is gone; the same `vemray run` command resumes it."
    if s.get("message"):
        head += f"\n{s['message']}"
    return "\n".join([head, *(_row(name, st, s["state"]) for name, st in s.get("stages", {}).items())]), CODES[s["state"]]


def _row(name: str, stage: dict, run: str) -> str:
    """One stage: what became of it, how many of its blocks are done, and how fast while the run lives."""
    state, blocks = stage["state"], stage["blocks"]
    if run != "running":
        state = {"running": run, "waiting": "not run"}.get(state, state)
    done = blocks if state in ("done", "kept") else stage["done"]
    row = f"  {name:<28} {state:<11} {done:>7}/{blocks} block{'s' * (blocks != 1)}"
    if stage.get("pass_name") and state not in ("done", "kept"):
        row += f" of {stage['pass_name']}"
    if state == "running" and stage.get("rate_mvoxel_s"):
        row += f"  {stage['rate_mvoxel_s']:.1f} Mvoxel/s, {duration(stage['remaining_s'])} left"
    elif state == "done" and stage.get("seconds") is not None:
        row += f"  {duration(stage['seconds'])}"
    return row
