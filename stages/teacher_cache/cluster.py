"""The teacher on many machines: shards are tasks on Ray actors that hold it. The driver alone records them.

What is left to Ray: where a worker runs, how a call reaches it, and whether it is alive. Nothing here depends on how many
workers there are, so that a run may begin on a cluster and go on in one process, or the other way round.
"""

import contextlib
import math
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cache import storage
from cache.errors import PipelineError
from cache.files import remove_temporaries
from cache.locks import sole_writer
from cache.progress import Progress, silent
from cache.resume import Rerun
from cache.shards import ShardReader
from cache.storage import AnyPath
from stages.teacher_cache.pool import Plan, Pool, Say, short
from stages.teacher_cache.run import Done, completed, finish, opened
from stages.teacher_cache.settings import ClusterSettings
from stages.teacher_cache.worker import Task

MOST_CPUS = 8  # of a worker: a teacher's batch hardly gets faster with more
OBJECT_STORE = 100 << 20  # bytes; only paths and manifest entries travel


def cache_teacher_on_ray(
    task: Task,
    cluster: ClusterSettings,
    device: str,
    rerun: Rerun = "refuse",
    progress: Progress[float] = silent,
    say: Say = lambda text: None,
) -> dict[str, Any]:
    """What `cache_teacher` does, with the same result.

    say: is told of the workers, and of those that die.
    """
    source = ShardReader(task.utterances, "utterances")
    with sole_writer(task.out), connected(cluster.address) as ray:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        plan = planned(nodes, cluster, device, len(source.shards))
        say(f"Ray: machines: {len(nodes)}, workers: {plan.workers}, of each: CPUs: {plan.cpus}, GPUs: {plan.gpus}")
        with Pool(ray, task, plan, device, say) as pool:
            writer = opened(task.out, pool.open(source), task.settings.format, rerun)
            if writer.complete:
                return completed(writer)
            waiting = [index for index in range(len(source.shards)) if index not in writer.shards]
            for entry in pool.run(waiting, Done(progress, source, writer).add):
                _check_seen(task.out, entry)
                if entry["batch_size"] < task.settings.batch_size:
                    say(f"{entry['name']}: made with batches of {entry['batch_size']}, for want of memory")
                writer.record(entry)
        remove_temporaries(task.out)  # of workers that died
        return finish(writer)


def planned(nodes: list[dict[str, float]], cluster: ClusterSettings, device: str, shards: int) -> Plan:
    """nodes: Ray's resources of each machine. A worker has a GPU to itself where there are any, else a share of the cores."""
    gpus = int(device != "cpu" and any(node.get("GPU", 0) >= 1 for node in nodes))
    if device not in ("auto", "cpu") and not gpus:
        raise PipelineError(f"device '{device}': no machine of the Ray cluster has a GPU; give auto or cpu")
    cores = [int(node.get("CPU", 0) // (node["GPU"] if gpus else 1)) for node in nodes if node.get("GPU", 0) >= gpus]
    fair = min(cores) if gpus else max(cores, default=0)
    cpus = cluster.cpus_per_worker or max(1, min(MOST_CPUS, fair))
    room = sum(int(min(node.get("CPU", 0) // cpus, node.get("GPU", 0) if gpus else math.inf)) for node in nodes)
    if not room:
        raise PipelineError(
            f"no machine of the Ray cluster has {cpus} CPUs{' and a GPU' if gpus else ''} for a worker: "
            "set cluster.cpus_per_worker, or start Ray with more"
        )
    return Plan(max(1, min(cluster.workers or room, shards)), cpus, gpus)


@contextmanager
def connected(address: str | None) -> Iterator[Any]:
    """Ray, connected to `address`, to RAY_ADDRESS, or to a cluster of this machine that ends with the run."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
    try:
        import ray
    except ImportError:
        raise PipelineError(
            "engine 'ray': Ray is not installed: pip install 'whisper-offline-distillation[cluster]'"
        ) from None
    if ray.is_initialized():
        yield ray
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if address.startswith("ray://"):
        raise PipelineError(f"{address}: run this command on a machine of the cluster, with --ray-address auto")
    # Ray prints the death of each worker to stdout; what matters of it is said in one line
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        _connect(ray, address)
        try:
            yield ray
        finally:
            ray.shutdown()


def _connect(ray: Any, address: str) -> None:
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if address == "local":
            cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
            ray.init(address, num_cpus=cpus, object_store_memory=OBJECT_STORE, include_dashboard=False, **quiet)
        else:
            if ":" in address:  # Ray itself would try for minutes
                host, _, port = address.rpartition(":")
                socket.create_connection((host, int(port)), timeout=10).close()
            ray.init(address, **quiet)
    except (OSError, RuntimeError, ValueError) as error:
        raise PipelineError(
            f"Ray at '{address}' cannot be reached ({short(error)}): is `ray start` done there, and where it has a token, "
            "is that here, and RAY_AUTH_MODE=token?"
        ) from None


def _check_seen(folder: AnyPath, entry: dict[str, Any]) -> None:
    if storage.sizes(folder).get(entry["name"]) != entry["bytes"]:
        raise PipelineError(
            f"{folder / entry['name']}: a worker has written it, but here it is not: every machine must see the same "
            "folders, by a shared filesystem or an object store"
        )
