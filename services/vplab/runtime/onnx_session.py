"""ONNX Runtime sessions with every choice that matters in a server made on purpose.

``InferenceSession.run`` releases the interpreter's lock while it computes; it still belongs on the thread of a
``DeviceQueue``. onnxruntime is imported with the first session, so services without models do not pay for it.

Memory. Without an arena the C library gives an encoder's activations back to the system after every run, and each run
has its pages zeroed anew: a quarter more processor time. So activations live in arenas, which are kept small by these:

- On the CPU one arena serves all sessions of a process (an environment allocator): as many sets of activations as there
  are runs at a time, however many models there are. On CUDA each session has its own, bounded by
  ``gpu_memory_limit_bytes``; what exceeds the bound fails as that run's error. On the CPU there is no bound, since the
  container has one.
- Both grow by what is asked for and not by powers of two.
- Weights are kept outside, so that a version that is unloaded gives its memory back at once.
- An arena keeps what the largest batch ever needed, until ``releasing_run`` gives back what nothing uses.
- Memory patterns (one block for a shape's activations, planned at its first run) are on: two shapes at the most recur.
"""

import ctypes
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal

import structlog

from vplab.errors import FailedPrecondition, Unavailable

Provider = Literal["tensorrt", "cuda", "cpu"]

_NAMES: Final[dict[str, str]] = {
    "tensorrt": "TensorrtExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "cpu": "CPUExecutionProvider",
}
# On the CPU an addition fused with the normalisation behind it takes 8 ns a number and the two apart about 1, a third
# of a mask decoder's run (ONNX Runtime 1.31; to be dropped once a run without it is not faster).
_SLOW_ON_CPU: Final = ["SkipLayerNormFusion"]
_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class OnnxSettings:
    """How graphs are run."""

    providers: tuple[Provider, ...] = ()
    """In order of preference. Empty means CUDA where a device answers, else the CPU. TensorRT is used only when named
    here, because it builds an engine for minutes when it first meets a graph. A provider that is named and cannot be
    used is an error; nobody should find out from the bill that a GPU was idle."""
    device_id: int = 0
    """Which of the visible GPUs."""
    intra_op_threads: int = 0
    """Threads of one run on the CPU; 0 means one for each core that this process may use."""
    spins: bool = False
    """Whether threads wait busily for the next operator of a run in progress (between runs they sleep all the same): a
    little faster alone on a machine, and slower as soon as anything else computes there, for that and for the run."""
    gpu_memory_limit_bytes: int | None = None
    """Most that a session's arena takes on the GPU; None for no limit."""
    allows_tf32: bool = False
    """Whether CUDA may round float32 products to 10 bits: faster, and outside of the parity that imports are checked
    for."""
    engine_cache: Path | None = None
    """Folder where TensorRT keeps its engines; without one each start builds them anew."""


def create_session(graph: Path | str | bytes, settings: OnnxSettings | None = None) -> Any:
    """Return an ``onnxruntime.InferenceSession`` of a graph: a path (external data lies beside it) or its bytes.

    Raises FailedPrecondition (MODEL_UNSUPPORTED) if the graph cannot be loaded, Unavailable if a provider that was
    named cannot be used on this machine.
    """
    import onnxruntime as ort

    settings = settings or OnnxSettings()
    wanted = settings.providers or _default_providers()
    if "cpu" not in wanted:
        wanted = (*wanted, "cpu")  # operators that the others lack run there
    if wanted[0] != "cpu":
        _require_gpu(ort, wanted)
    options = ort.SessionOptions()
    # Said even where it is all: by itself ONNX Runtime would tie each thread to a core, whoever else uses that.
    options.intra_op_num_threads = settings.intra_op_threads or num_cores()
    options.inter_op_num_threads = 1  # the graphs are chains; threads between operators only add switches
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    _share_cpu_arena()
    for key, value in {
        "session.use_env_allocators": "1",
        "session.use_device_allocator_for_initializers": "1",
        "session.intra_op.allow_spinning": "1" if settings.spins else "0",
        "session.force_spinning_stop": "1",
    }.items():
        options.add_session_config_entry(key, value)
    options.log_severity_level = 3  # errors; warnings tell about graph optimisations nobody acts on
    source = graph if isinstance(graph, bytes) else str(graph)
    try:
        session = ort.InferenceSession(
            source,
            options,
            providers=[_with_options(name, settings) for name in wanted],
            disabled_optimizers=_SLOW_ON_CPU if wanted[0] == "cpu" else [],
        )
    except (ort.capi.onnxruntime_pybind11_state.NoSuchFile, FileNotFoundError) as error:
        raise FailedPrecondition(f"the graph {source!r} does not exist", reason="MODEL_UNSUPPORTED") from error
    except Exception as error:
        # onnxruntime's exceptions have no common base below Exception, and none of them is ours to handle otherwise.
        raise FailedPrecondition("the graph cannot be loaded", reason="MODEL_UNSUPPORTED") from error
    used = session.get_providers()[0]
    if used != _NAMES[wanted[0]]:
        raise Unavailable(f"ONNX Runtime fell back to {used}; {_NAMES[wanted[0]]} cannot be used on this machine")
    _log.info("graph loaded", provider=used, threads=settings.intra_op_threads)
    return session


def runs_on_cpu(settings: OnnxSettings) -> bool:
    """Return whether sessions of these settings compute on the CPU."""
    return (settings.providers or _default_providers())[0] == "cpu"


def releasing_run(session: Any, output_names: Sequence[str], feed: Mapping[str, Any]) -> list[Any]:
    """Run a graph, then give back to the system what its arenas hold and nothing uses.

    For the first run of a version: those that leave memory make room this way, and no later run pays for it.
    """
    import onnxruntime as ort

    arenas = ["cpu:0"]
    if _NAMES["cuda"] in session.get_providers():
        arenas.append(f"gpu:{session.get_provider_options()[_NAMES['cuda']]['device_id']}")
    options = ort.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", ";".join(arenas))
    outputs: list[Any] = session.run(list(output_names), dict(feed), options)
    return outputs


def device_of(session: Any, settings: OnnxSettings | None = None) -> str:
    """Return where a session runs: ``cpu`` or ``cuda:0``."""
    is_cpu = session.get_providers()[0] == _NAMES["cpu"]
    return "cpu" if is_cpu else f"cuda:{(settings or OnnxSettings()).device_id}"


@cache
def _share_cpu_arena() -> None:
    import onnxruntime as ort

    cpu = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    # -1 is ONNX Runtime's own choice, a max_mem of 0 no bound; an extend strategy of 1 grows by what is asked for.
    arena = {"max_mem": 0, "arena_extend_strategy": 1, "initial_chunk_size_bytes": -1, "max_dead_bytes_per_chunk": -1}
    ort.create_and_register_allocator(cpu, ort.OrtArenaCfg(arena))


@cache
def num_cores() -> int:
    """Return how many cores this process may use: of its affinity and its control group, each core counted once."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores = {_read(f"/sys/devices/system/cpu/cpu{index}/topology/thread_siblings_list") or index for index in allowed}
    quota, _, period = _read("/sys/fs/cgroup/cpu.max").partition(" ")
    most = int(quota) / int(period) if quota.isdigit() and period.isdigit() else len(cores)
    return max(1, min(len(cores), round(most)))


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


@cache
def num_gpus() -> int:
    """Return how many CUDA devices the driver offers.

    ``onnxruntime.get_available_providers`` only tells what was compiled in: it names CUDA on every machine.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def _default_providers() -> tuple[Provider, ...]:
    if num_gpus() == 0:
        return ("cpu",)
    import onnxruntime as ort

    return ("cuda", "cpu") if _NAMES["cuda"] in ort.get_available_providers() else ("cpu",)


def _require_gpu(ort: Any, wanted: tuple[Provider, ...]) -> None:
    missing = [name for name in wanted if _NAMES[name] not in ort.get_available_providers()]
    if missing:
        raise Unavailable(f"this ONNX Runtime was built without {', '.join(missing)}")
    if num_gpus() == 0:
        raise Unavailable(f"{wanted[0]} was asked for, but no CUDA device answers on this machine")
    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls()  # finds CUDA and cuDNN in the nvidia-* wheels, which are on no library path


def _with_options(name: Provider, settings: OnnxSettings) -> tuple[str, dict[str, str]]:
    options: dict[str, str] = {}
    if name == "cuda":
        options = {
            "device_id": str(settings.device_id),
            "arena_extend_strategy": "kSameAsRequested",
            # The default tries every algorithm anew for each shape of a batch.
            "cudnn_conv_algo_search": "HEURISTIC",
            "use_tf32": "1" if settings.allows_tf32 else "0",
        }
        if settings.gpu_memory_limit_bytes is not None:
            options["gpu_mem_limit"] = str(settings.gpu_memory_limit_bytes)
    if name == "tensorrt":
        options = {"device_id": str(settings.device_id)}
        if settings.engine_cache is not None:
            options |= {"trt_engine_cache_enable": "1", "trt_engine_cache_path": str(settings.engine_cache)}
    return _NAMES[name], options
