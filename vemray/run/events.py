"""Events of a run. Progress, plain lines, the JSONL log and the status page are listeners; the engine only says what happens."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from vemray.plan.cost import duration
from vemray.store import access

Listener = Callable[[dict[str, Any]], None]


class Events:
    """Hands every event to its listeners. An event is a flat dict with 'event' and 't' (seconds since the epoch)."""

    def __init__(self, *listeners: Listener):
        self.listeners = [x for x in listeners if x]

    def __call__(self, event: str, **facts: Any) -> None:
        e = {"t": round(time.time(), 3), "event": event, **facts}
        for listen in self.listeners:
            listen(e)

    def close(self) -> None:
        for listen in self.listeners:
            getattr(listen, "close", lambda: None)()


class JsonLines:
    """`ledger/events/<run>-<n>.jsonl`: a new object every few seconds, since object stores cannot append."""

    def __init__(self, root: str, run: str, seconds: float = 5.0):
        self.url, self.run, self.seconds = access.join(root, "ledger", "events"), run, seconds
        self.lines: list[str] = []
        self.n, self.last = 0, time.time()

    def __call__(self, e: dict) -> None:
        self.lines.append(json.dumps(e, default=str))
        if time.time() - self.last > self.seconds:
            self.close()

    def close(self) -> None:
        if self.lines:
            access.write_bytes(access.join(self.url, f"{self.run}-{self.n:05d}.jsonl"), ("\n".join(self.lines) + "\n").encode())
            self.n += 1
        self.lines, self.last = [], time.time()


def read_events(root: str) -> list[dict]:
    url = access.join(root, "ledger", "events")
    out = []
    for name in sorted(access.list_names(url)):
        out += [json.loads(line) for line in access.read_bytes(access.join(url, name)).splitlines()]
    return sorted(out, key=lambda e: e["t"])


class Status:
    """`ledger/status.json`: where the run stands, renewed every few seconds, for `vemray status` from any machine."""

    def __init__(self, root: str, first: dict, seconds: float = 3.0):
        self.url, self.seconds, self.last = access.join(root, "ledger", "status.json"), seconds, 0.0
        self.state = dict(first)
        self.lock = threading.Lock()

    def beat(self) -> None:
        """A sign of life while nothing happens; called from another thread."""
        with self.lock:
            if self.state["state"] == "running":
                self.state["beat"] = time.time()
                self._write()

    def _write(self) -> None:
        access.write_bytes(self.url, json.dumps(self.state, indent=1).encode())
        self.last = time.time()

    def __call__(self, e: dict) -> None:
        with self.lock:
            self._take(e)

    def _take(self, e: dict) -> None:
        kind = e["event"]
        stages = self.state.setdefault("stages", {})
        if kind == "plan":
            stages.update(
                {s["name"]: {"title": s["title"], "blocks": s["blocks"], "all": s["blocks"], "done": 0, "state": "waiting"} for s in e["stages"]}
            )
        elif kind == "stage":
            stages[e["stage"]].update(state="running", pass_name=e["pass_name"], blocks=e["blocks"], done=e["done"], started=e["t"])
            for rate in ("rate_mvoxel_s", "remaining_s"):  # of the pass before
                stages[e["stage"]].pop(rate, None)
        elif kind == "blocks":
            stages[e["stage"]].update(done=e["done"], rate_mvoxel_s=e["rate"], remaining_s=e["remaining"])
        elif kind == "stage_done":
            blocks = stages[e["stage"]]["all"]
            stages[e["stage"]].update(state="kept" if e.get("skipped") else "done", seconds=e.get("seconds"), blocks=blocks, done=blocks)
        elif kind == "end":
            self.state.update(state=e["state"], message=e.get("message", ""))
            for stage in stages.values():
                if stage["state"] == "running":
                    stage["state"] = e["state"]
        self.state["beat"] = e["t"]
        if kind in ("end", "plan", "stage", "stage_done") or time.time() - self.last > self.seconds:
            self._write()


def idle(e: dict) -> str:
    """Of a stage with a model: how much of the time of those that hold it the network did not run."""
    return f", {e['holders']} network{'s' * (e['holders'] != 1)}, idle {100 * e['idle']:.0f} %" if "idle" in e else ""


def _blocks(n: int) -> str:
    return f"{n} block{'s' * (n != 1)}"


class Lines:
    """Plain lines for logs and pipes."""

    def __init__(self, stream=None, seconds: float = 10.0):
        self.stream, self.seconds, self.last = stream or sys.stderr, seconds, 0.0

    def _say(self, text: str) -> None:
        self.stream.write(time.strftime("%H:%M:%S ") + text + "\n")
        self.stream.flush()

    def __call__(self, e: dict) -> None:
        kind = e["event"]
        if kind == "stage":
            again = f", {e['done']} done before" if e["done"] else ""
            self._say(f"{e['stage']}: {e['title']}{' (' + e['pass_name'] + ')' if e['pass_name'] else ''}, {_blocks(e['blocks'])}{again}")
            self.last = time.time()
        elif kind == "blocks" and time.time() - self.last > self.seconds:
            self._say(f"{e['stage']}: {e['done']}/{_blocks(e['blocks'])}, {e['rate']:.1f} Mvoxel/s, {duration(e['remaining'])} left")
            self.last = time.time()
        elif kind == "stage_done":
            self._say(f"{e['stage']}: " + ("unchanged, kept" if e.get("skipped") else f"done in {duration(e['seconds'])}{idle(e)}"))
        elif kind == "note":
            self._say(e["text"])
        elif kind == "end":
            self._say(e["state"] + (f": {e['message']}" if e.get("message") else ""))


class Bars:
    """Progress bars in a terminal."""

    def __init__(self):
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            transient=False,
        )
        self.tasks: dict[str, Any] = {}
        self.totals: dict[str, int] = {}
        self.progress.start()

    def __call__(self, e: dict) -> None:
        kind = e["event"]
        if kind == "stage":
            name = f"{e['stage']} {e['pass_name']}".strip()
            self._finish(e["stage"])  # the pass before
            self.tasks[e["stage"]] = self.progress.add_task(name, total=e["blocks"], completed=e["done"], rate="")
            self.totals[e["stage"]] = e["blocks"]
        elif kind == "blocks":
            self.progress.update(self.tasks[e["stage"]], completed=e["done"], rate=f"{e['rate']:.1f} Mvoxel/s, {duration(e['remaining'])} left")
        elif kind == "stage_done" and e.get("skipped"):
            self.progress.console.log(f"{e['stage']}: unchanged, kept")
        elif kind == "stage_done":
            self._finish(e["stage"])
        elif kind == "note":
            self.progress.console.log(e["text"])
        elif kind == "end":
            self.progress.stop()

    def _finish(self, stage: str) -> None:
        """An analysis reports no blocks, and the last block's rate is no longer of interest."""
        if stage in self.tasks:
            self.progress.update(self.tasks[stage], completed=self.totals[stage], rate="")

    def close(self) -> None:
        self.progress.stop()
