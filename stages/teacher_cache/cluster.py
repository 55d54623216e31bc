"""Runs the teacher on many machines: each shard is a call of a Ray actor that holds the teacher. Only the driver records.

Ray decides where a worker runs, delivers the calls, and tells whether a worker is alive. The result does not depend on the
number of workers. Therefore a run may begin on a cluster and continue in one process, or the reverse.
"""

import contextlib
import math
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cache import storage
from cache.errors import PipelineError, how_to_install
from cache.files import remove_temporaries
from cache.locks import sole_writer
from cache.progress import Progress, silent
from cache.resume import Rerun
from cache.shards import ShardReader
from cache.storage import AnyPath
from stages.teacher_cache.pool import Plan, Pool, Print, last_line
from stages.teacher_cache.run import ProgressCounter, finish, finished_manifest, open_writer
from stages.teacher_cache.settings import ClusterSettings
from stages.teacher_cache.worker import ScoringRequest

MOST_CPUS = 8  # per worker: a teacher's batch hardly gets faster with more
OBJECT_STORE = 100 << 20  # bytes; only paths and manifest entries are sent


def cache_teacher_on_ray(
    request: ScoringRequest,
    cluster: ClusterSettings,
    device: str,
    rerun: Rerun = "refuse",
    progress: Progress[float] = silent,
    say: Print = lambda text: None,
) -> dict[str, Any]:
    """Does the same as `cache_teacher` on a Ray cluster, with the same result.

    say: called with a line about the workers, and about each that dies.
    """
    utterances = ShardReader(request.utterances, "utterances")
    with sole_writer(request.out), connected(cluster.address) as ray:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        plan = plan_workers(nodes, cluster, device, len(utterances.shards))
        say(f"Ray: machines: {len(nodes)}, workers: {plan.workers}, of each: CPUs: {plan.cpus}, GPUs: {plan.gpus}")
        with Pool(ray, request, plan, device, say) as pool:
            writer = open_writer(request.out, pool.open(utterances), request.settings.format, rerun)
            if writer.complete:
                return finished_manifest(writer)
            waiting = [index for index in range(len(utterances.shards)) if index not in writer.shards]
            for entry in pool.run(waiting, ProgressCounter(progress, utterances, writer).add):
                _check_seen(request.out, entry)
                if entry["batch_size"] < request.settings.batch_size:
                    say(f"{entry['name']}: made with batches of {entry['batch_size']}, for lack of memory")
                writer.record(entry)
        remove_temporaries(request.out)  # left by workers that died
        return finish(writer)


def plan_workers(nodes: list[dict[str, float]], cluster: ClusterSettings, device: str, shards: int) -> Plan:
    """Decides how many workers run, and with what. A worker gets a GPU of its own if there are any, else a share of the cores.

    nodes: Ray's resources of each machine. Raises PipelineError where no machine has room for a worker.
    """
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
    """Yields Ray, connected to `address`, to RAY_ADDRESS, or to a cluster on this machine that ends with the run."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray sends no usage statistics
    try:
        import ray
    except ImportError:
        raise PipelineError(f"engine 'ray': Ray is not installed: {how_to_install('cluster')}") from None
    if ray.is_initialized():
        yield ray
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if address.startswith("ray://"):
        raise PipelineError(f"{address}: run this command on a machine of the cluster, with --ray-address auto")
    # Ray prints the death of each worker to stdout; `say` is told of it in one line
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
            if ":" in address:  # Ray itself would try for minutes before it gives up
                host, _, port = address.rpartition(":")
                socket.create_connection((host, int(port)), timeout=10).close()
            ray.init(address, **quiet)
    except (OSError, RuntimeError, ValueError) as error:
        raise PipelineError(
            f"Ray at '{address}' cannot be reached ({last_line(error)}): run `ray start` there; if that Ray has a token, "
            "give it here, too, with RAY_AUTH_MODE=token"
        ) from None


def _check_seen(folder: AnyPath, entry: dict[str, Any]) -> None:
    if storage.sizes(folder).get(entry["name"]) != entry["bytes"]:
        raise PipelineError(
            f"{folder / entry['name']}: a worker has written this file, but it is not visible here: every machine must see "
            "the same folders, by a shared filesystem or an object store"
        )
