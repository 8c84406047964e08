"""A training on several workers, through Ray Train. Every worker ("rank") holds the network, cuts its share of a step's crops and computes it; gradients
are summed. The loss is one of the whole batch: ranks show each other their scores, so that shares make the loss that one worker would have.

Rank 0 alone looks at the validation region and writes files; the driver hears of it through a small actor."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from vemray.errors import InputError, StorageError
from vemray.store import access

#: a training whose workers die goes on from its last check this often
FAILURES = 3
#: seconds that ranks wait for one another: for rank 0 to be done with the validation region, above all
PATIENCE = 4 * 3600


class Alone:
    """The group of a training in one process."""

    rank, of, device = 0, 1, None

    def joined(self, network) -> tuple[Any, Callable]:
        """The network, and what is called in its place so that gradients are those of all ranks."""
        return network, network

    def agreed(self, value: Any) -> Any:
        """What rank 0 says."""
        return value

    def whole(self, rows: int, *parts) -> tuple:
        """Tensors of a batch of `rows` crops, put together from those of all ranks. Gradients flow to the own ones."""
        return parts

    def evened(self, network) -> None:
        """Give all ranks the same running statistics."""


class Group(Alone):
    """One of `of` ranks that torch.distributed has joined."""

    def __init__(self, rank: int, of: int, gpu: bool):
        self.rank, self.of, self.device = rank, of, "cuda" if gpu else "cpu"

    def joined(self, network) -> tuple[Any, Callable]:
        from torch import nn

        if self.device == "cuda":  # torch has it for GPUs only; on CPUs each rank normalises by its own crops
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        # find_unused_parameters: it also keeps DDP from sorting its buckets anew, so that a training that went on adds in the order of one that never stopped
        return network, nn.parallel.DistributedDataParallel(network, broadcast_buffers=False, find_unused_parameters=True)

    def agreed(self, value: Any) -> Any:
        import torch
        from torch import distributed

        said = [value]
        distributed.broadcast_object_list(said, src=0, device=torch.device(self.device))
        return said[0]

    def whole(self, rows: int, *parts) -> tuple:
        return tuple(None if p is None else self._whole(rows, p) for p in parts)

    def _whole(self, rows: int, own):
        import torch
        from torch import distributed

        counts = [len(range(r, rows, self.of)) for r in range(self.of)]
        sent = torch.zeros((counts[0], *own.shape[1:]), dtype=own.dtype, device=own.device)  # rank 0 has the most
        sent[: len(own)] = own.detach()
        found = [torch.empty_like(sent) for _ in counts]
        distributed.all_gather(found, sent)
        return torch.cat([own if r == self.rank else f[:n] for r, (f, n) in enumerate(zip(found, counts))])

    def evened(self, network) -> None:
        import torch
        from torch import distributed

        buffers = [b for b in network.buffers() if b.dtype.is_floating_point]
        if self.device == "cuda" or not buffers:  # the same already
            return
        flat = torch.cat([b.flatten() for b in buffers])
        distributed.all_reduce(flat)
        for b, mean in zip(buffers, (flat / self.of).split([b.numel() for b in buffers])):
            b.copy_(mean.view_as(b))


def share(batch: int, workers: int) -> int:
    """Crops that a worker has of a batch. InputError where they are not the same for all."""
    if batch % workers:
        near = [n for n in (batch // workers * workers, -(-batch // workers) * workers) if n]
        raise InputError(
            f"settings.workers: a batch of {batch} crops does not divide by {workers} workers. Set settings.batch to {' or '.join(map(str, near))}."
        )
    return batch // workers


def run(work: Callable[[Any, Callable[[dict], None], Alone], Any], task: Any, workers: int, threads: int, device: str, urls: list[str],
        progress: Callable[[dict], None]) -> Any:  # fmt: skip
    """work(task, progress, group) on so many workers, each with `threads` CPUs and a GPU where there are some; what rank 0 gives. Workers that die are
    started again, all of them: `work` goes on from its own checkpoint. `urls`: what it reads. It runs in the Ray that this process is connected to, or in
    one of its own on this machine."""
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    import ray

    with _a_ray(workers * threads), tempfile.TemporaryDirectory(prefix="vemray-train-", ignore_cleanup_errors=True) as folder:
        gpu = _with_gpus(ray.cluster_resources(), workers, threads, device)
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        box = ray.remote(_Box).options(num_cpus=0, scheduling_strategy=here).remote()
        view = access.s3_view() if any(access.scheme(url) == "s3" for url in urls) else ""
        config = {"work": work, "task": ray.put(task), "box": box, "gpu": gpu, "folder": os.getcwd(), "s3": view}
        fit = _Fit(config, workers, threads, gpu, folder)
        fit.start()
        try:
            while True:
                fit.join(0.2)
                over = not fit.is_alive()
                for kind, what in ray.get(box.take.remote()):
                    if kind == "event":
                        progress(what)
                    elif kind == "failed":
                        raise what
                    elif kind == "result":
                        fit.result = (what,)
                if over:
                    return fit.outcome()
        finally:
            ray.kill(box)  # ranks that still run stop at the next word they have for it, and are not started again


class _Fit(threading.Thread):
    """Ray Train beside the main thread, which passes on what the ranks say and is the one to be interrupted."""

    def __init__(self, config: dict, workers: int, threads: int, gpu: bool, folder: str):
        super().__init__(daemon=True)
        self.config, self.workers, self.threads, self.gpu, self.folder = config, workers, threads, gpu, folder
        self.result: tuple = ()
        self.error: BaseException | None = None

    def run(self) -> None:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        each = {"CPU": self.threads, **({"GPU": 1} if self.gpu else {})}
        try:
            TorchTrainer(
                _rank,
                train_loop_config=self.config,
                torch_config=TorchConfig(backend="nccl" if self.gpu else "gloo", timeout_s=PATIENCE),
                scaling_config=ScalingConfig(num_workers=self.workers, use_gpu=self.gpu, resources_per_worker=each),
                run_config=RunConfig(storage_path=self.folder, failure_config=FailureConfig(max_failures=FAILURES)),
            ).fit()
        except (Exception, SystemExit) as e:  # SystemExit: Ray was shut down under it
            self.error = e

    def outcome(self) -> Any:
        if self.result:
            return self.result[0]
        said = [str(e).strip() for e in getattr(self.error, "worker_failures", {}).values()] or [str(self.error or "no result").strip()]
        raise StorageError(
            f"the training's workers failed {FAILURES + 1} times: {(said[0].splitlines() or ['?'])[-1]}. Run it again: it goes on from its last check."
        ) from self.error


class _Box:
    """What ranks have to say to the driver."""

    def __init__(self):
        self.said: list[tuple[str, Any]] = []

    def put(self, kind: str, what: Any) -> None:
        self.said.append((kind, what))

    def take(self) -> list[tuple[str, Any]]:
        said, self.said = self.said, []
        return said


def _rank(config: dict) -> None:
    """A worker's share."""
    import ray
    from ray.exceptions import RayError
    from ray.train import get_context

    rank, of, box = get_context().get_world_rank(), get_context().get_world_size(), config["box"]
    say = lambda kind, what: ray.get(box.put.remote(kind, what))  # noqa: E731  heard before it goes on
    try:
        say("rank", rank)
    except RayError:  # the driver has given up, and this is what Ray Train has started again
        return
    with contextlib.suppress(OSError):
        os.chdir(config["folder"])  # addresses may be relative to it; Ray Train has left it
    try:
        access.expect_s3_view(config["s3"])
        result = config["work"](
            ray.get(config["task"]), (lambda e: say("event", e)) if rank == 0 else (lambda e: None), Group(rank, of, config["gpu"])
        )
    except Exception as e:
        if not _of_infrastructure(e):  # to try again would not help
            e.add_note(f"On rank {rank}:\n{traceback.format_exc()}")
            say("failed", e)
        raise
    if rank == 0:
        say("result", result)


def _of_infrastructure(e: Exception) -> bool:
    """Another rank, the driver or the store is gone. gloo says so in a plain RuntimeError."""
    import torch
    from ray.exceptions import RayError

    return type(e) is RuntimeError or isinstance(e, (OSError, StorageError, RayError, torch.distributed.DistError))


def _with_gpus(have: dict, workers: int, threads: int, device: str) -> bool:
    """Whether the workers get GPUs. InputError where Ray has too little of what they need: it would wait for ever."""
    gpus, cpus = int(have.get("GPU", 0)), int(have.get("CPU", 0))
    gpu = device == "cuda" or (device == "auto" and gpus > 0)
    if gpu and gpus < workers:
        raise InputError(
            f"settings.workers: {workers} workers need {workers} GPUs, and Ray has {gpus}. Set fewer workers, or settings.device to cpu."
        )
    if cpus < workers * threads:
        raise InputError(f"settings.workers: {workers} workers of {threads} threads need {workers * threads} CPUs, and Ray has {cpus}.")
    return gpu


@contextlib.contextmanager
def _a_ray(cpus: int) -> Iterator[None]:
    """The Ray that is there, or one for this training alone, as quiet as that of a run."""
    import ray

    if ray.is_initialized():
        yield
        return
    env = {**{k: v for k, v in os.environ.items() if k.startswith("VEMRAY_")}, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    ray.init(
        address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False,
        runtime_env={"env_vars": env},
    )  # fmt: skip
    try:
        yield
    finally:
        ray.shutdown()
