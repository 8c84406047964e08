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
    rows = []
    for name, st in s.get("stages", {}).items():
        line = f"  {name:<28} {st['state']:<8} {st['done'] if st['state'] == 'running' else st['blocks'] if st['state'] == 'done' else 0:>7}/{st['blocks']} blocks"
        if st["state"] == "running" and "rate_mvoxel_s" in st:
            line += f"  {st['rate_mvoxel_s']:.1f} Mvoxel/s, {duration(st['remaining_s'])} left"
        elif st.get("seconds") is not None:
            line += f"  {duration(st['seconds'])}"
        rows.append(line)
    return "\n".join([head, *rows]), CODES[s["state"]]
