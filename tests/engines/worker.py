"""Loads checkpoints with vLLM's own loaders: `PYTHON worker.py REQUEST ANSWER`, in its environment.

One process a rank over gloo on loopback. Each builds its model, loads the original with vLLM's
default loader, remembers every byte, and then loads each candidate with the loader named for it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
import os
import socket
import sys
import traceback
import uuid
from pathlib import Path
from typing import Any

import vllm_probe

TIMEOUT = 300
SHARED_MEMORY = Path("/dev/shm")
POISON = 0xA5


class Warnings(logging.Handler):
    """Keeps what vLLM warns of: its loader only warns of a tensor of another shape or dtype."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def connect(tp: int, pp: int, rank: int, port: int) -> None:
    """Join the real groups of all ranks."""
    from vllm.distributed import parallel_state as state

    state.init_distributed_environment(
        world_size=tp * pp,
        rank=rank,
        local_rank=rank,
        distributed_init_method=f"tcp://127.0.0.1:{port}",
        backend="gloo",
    )
    state.ensure_model_parallel_initialized(tp, pp)


def fill(tensors: Any, byte: int) -> None:
    """Set every byte, so that what a loader leaves out is seen."""
    import torch

    for tensor in tensors:
        flat = tensor.data.reshape(-1) if tensor.data.is_contiguous() else None
        assert flat is not None, "a tensor that is not contiguous"
        flat.view(torch.uint8).fill_(byte)


def large(model: Any) -> dict[str, Any]:
    """Parameters but for scalars, which the default loader leaves as they were made."""
    return {name: p for name, p in model.named_parameters() if p.dim() > 0}


def digests(model: Any) -> dict[str, str]:
    """What each tensor holds: dtype, shape, SHA-256 of its bytes."""
    import torch

    found = {}
    for name, tensor in vllm_probe.filtered(dict(model.state_dict())).items():
        data = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        shape = "x".join(map(str, tensor.shape))
        found[name] = f"{tensor.dtype} {shape} {hashlib.sha256(data).hexdigest()}"
    return found


def load(model: Any, config: Any, load_format: str, folder: str) -> None:
    """Load a folder with the loader of that name, and nothing that comes after loading."""
    from copy import copy

    from vllm.model_executor.model_loader import get_model_loader

    load_config, model_config = copy(config.load_config), copy(config.model_config)
    load_config.load_format, model_config.model = load_format, folder
    get_model_loader(load_config).load_weights(model, model_config)


def try_candidate(model: Any, config: Any, candidate: dict[str, Any], expected: Any) -> Any:
    """Differences from what the default loader made of the original."""
    warnings = Warnings()
    logging.getLogger("vllm").addHandler(warnings)
    state = model.state_dict()
    constants = {name: state[name].clone() for name in state.keys() - large(model).keys()}
    sharded = candidate["load_format"] == "sharded_state"
    try:
        # Constants, such as scales of 1, are loaded from sharded state only.
        fill((state if sharded else large(model)).values(), POISON)
        load(model, config, candidate["load_format"], candidate["folder"])
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}", "different": []}
    finally:
        logging.getLogger("vllm").removeHandler(warnings)
    found = digests(model)
    for name, constant in constants.items():
        state[name].copy_(constant)
    different = sorted(k for k in expected.keys() | found if expected.get(k) != found.get(k))
    odd = [text for text in warnings.texts if "loading tensor" in text or "dtype" in text]
    return {"error": None, "different": different + odd}


def run_rank(request: dict[str, Any], config: Any, rank: int, port: int, answer: Path) -> None:
    """All that one rank does; the answer goes to a file."""
    import torch

    torch.set_num_threads(1)
    try:
        with vllm_probe.current(config):
            connect(request["tp"], request["pp"], rank, port)
            model = vllm_probe.build(config, weightless=False)
            fill(large(model).values(), POISON)
            load(model, config, "auto", request["original"])
            expected = digests(model)
            stage = rank // request["tp"]
            found = {}
            for candidate in request["candidates"]:
                folder = candidate["folder"].replace("{pp}", str(stage))
                own = candidate | {"folder": folder}
                found[candidate["name"]] = try_candidate(model, config, own, expected)
        result = {"tensors": expected, "wanted": vllm_probe.wanted(model), "found": found}
    except BaseException:
        result = {"failure": traceback.format_exc()}
    answer.write_text(json.dumps(result))


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def run_job(request: dict[str, Any], scratch: Path) -> list[Any]:
    """One layout: the answers of all ranks."""
    request = {"layers": None, "load_format": "auto", "trust_remote_code": False, **request}
    config = vllm_probe.engine_config(request, request["original"])
    context = multiprocessing.get_context("fork")
    port, answers = free_port(), []
    # Names shared memory, which vLLM leaves behind; its own worker sets it, too.
    os.environ["VLLM_DIST_IDENT"] = uuid.uuid4().hex
    processes = []
    for rank in range(request["tp"] * request["pp"]):
        answers.append(scratch / f"rank-{rank}.json")
        arguments = (request, config, rank, port, answers[-1])
        processes.append(context.Process(target=run_rank, args=arguments))
        processes[-1].start()
    for process in processes:
        process.join(TIMEOUT)
        if process.is_alive():
            process.kill()
    for left in SHARED_MEMORY.glob(f"{os.environ['VLLM_DIST_IDENT']}-*"):
        left.unlink()
    results = []
    for answer in answers:
        dead = {"failure": "the process died or waited too long"}
        results.append(json.loads(answer.read_text()) if answer.exists() else dead)
        answer.unlink(missing_ok=True)
    return results


def main(request: Path, answer: Path) -> None:
    vllm_probe.prepare()
    jobs = json.loads(request.read_text())
    import vllm

    stand_ins = vllm_probe.stand_in_kernels()
    results = [run_job(job, answer.parent) for job in jobs]
    report = {"version": vllm.__version__, "stand_ins": stand_ins, "jobs": results}
    answer.write_text(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
