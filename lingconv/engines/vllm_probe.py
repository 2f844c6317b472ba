"""Asks vLLM which tensors its sharded-state loader wants: `PYTHON vllm_probe.py REQUEST ANSWER`.

It runs in vLLM's environment, so it imports nothing of lingconv and only what vLLM itself needs.
REQUEST is a JSON file: `folders` (one with config.json for each pipeline stage), `tp`, `pp`, `ep`,
`layers` (of each stage, or null for vLLM's own choice), `ranks` (pairs of pp and tp to ask for),
`load_format`, `trust_remote_code`.
ANSWER is one, too: `version`, `platform`, `stand_ins`, and `ranks`, a list of `pp`, `tp` and
`tensors`: by name the dtype as safetensors spells it and the shape. Or `failure` (a word) and
`error`.

Models are built without memory for weights (on torch's meta device), a rank after another, in
groups that only pretend to have other members: constructors read sizes and ranks, they do not
communicate.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import contextmanager, nullcontext
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

# Names of element types in safetensors headers.
DTYPES = {
    "float32": "F32",
    "bfloat16": "BF16",
    "float16": "F16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e8m0fnu": "F8_E8M0",
    "int64": "I64",
    "int32": "I32",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}
# Configuration classes that neither vLLM nor transformers has. A bare one is enough to build the
# model, and runs no code of the checkpoint.
BARE_CONFIGS = ("bailing_moe",)
# Elements of the largest tensor that gets memory.
SMALL = 1 << 16
# For what vLLM reads at import.
ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
}


def prepare() -> None:
    """Set what vLLM reads when it is imported, then what it lacks."""
    os.environ.update(ENVIRONMENT)
    from transformers import AutoConfig, PretrainedConfig

    for model_type in BARE_CONFIGS:
        bare = type("BareConfig", (PretrainedConfig,), {"model_type": model_type})
        AutoConfig.register(model_type, bare, exist_ok=True)


def engine_config(request: dict[str, Any], folder: str) -> Any:
    """vLLM's configuration for one of the folders, as `vllm serve` would make it."""
    from vllm.engine.arg_utils import EngineArgs

    if request["layers"]:
        os.environ["VLLM_PP_LAYER_PARTITION"] = ",".join(map(str, request["layers"]))
    else:
        os.environ.pop("VLLM_PP_LAYER_PARTITION", None)
    return EngineArgs(
        model=folder,
        skip_tokenizer_init=True,
        model_impl="vllm",
        trust_remote_code=request["trust_remote_code"],
        dtype="bfloat16",
        load_format=request["load_format"],
        enforce_eager=True,
        tensor_parallel_size=request["tp"],
        pipeline_parallel_size=request["pp"],
        enable_expert_parallel=request["ep"] > 1,
        distributed_executor_backend="mp",
    ).create_engine_config()


def pretend_groups(tp: int, pp: int, rank: int) -> None:
    """Make vLLM's process groups as they are on `rank`, without the other processes."""
    import torch.distributed
    from torch.testing._internal.distributed.fake_pg import FakeStore
    from vllm.distributed import parallel_state as state

    class Pretended(state.GroupCoordinator):  # type: ignore[misc]
        def __init__(self, group_ranks: list[list[int]], local_rank: int, *_: Any, **__: Any):
            self.rank, self.local_rank, self.group_ranks = rank, local_rank, group_ranks
            self.ranks = next(ranks for ranks in group_ranks if rank in ranks)
            self.world_size, self.rank_in_group = len(self.ranks), self.ranks.index(rank)
            self.cpu_group = self.device_group = torch.distributed.group.WORLD
            self.device_communicator = self.mq_broadcaster = None
            self.use_device_communicator = self.use_custom_op_call = False
            self.device = torch.device("cpu")

    torch.distributed.init_process_group("fake", store=FakeStore(), rank=rank, world_size=tp * pp)
    state.GroupCoordinator = Pretended
    state._WORLD = Pretended([list(range(tp * pp))], 0)
    state._NODE_COUNT = 1
    state.initialize_model_parallel(tp, pp, backend="gloo")


def stand_in_kernels() -> list[str]:
    """Replace the choice of FP8 kernels where this machine has none; what was replaced.

    vLLM refuses FP8 on a CPU without AMX. Names, shapes and dtypes of stored weights do not depend
    on the choice, but for paddings that only some GPU kernels want: those are not seen then.
    """
    from vllm.model_executor.layers.quantization import fp8
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return []

    class Kernel:
        def process_weights_after_loading(self, layer: Any) -> None:
            pass

    replaced = []
    for name, value in (
        ("init_fp8_linear_kernel", Kernel()),
        ("select_fp8_moe_backend", (None, None)),
    ):
        if hasattr(fp8, name):
            setattr(fp8, name, lambda *_, value=value, **__: value)
            replaced.append(name)
    return replaced


@contextmanager
def current(config: Any) -> Iterator[None]:
    """The state in which vLLM makes groups, builds models and loads them."""
    from vllm.config import set_current_vllm_config

    import torch

    previous = torch.get_default_dtype()
    torch.set_default_dtype(config.model_config.dtype)
    try:
        with set_current_vllm_config(config):
            yield
    finally:
        torch.set_default_dtype(previous)


def build(config: Any, *, weightless: bool) -> torch.nn.Module:
    """The model of this rank, its weights not loaded; if `weightless` without memory for them."""
    from torch.overrides import TorchFunctionMode
    from vllm.model_executor.model_loader.utils import initialize_model

    import torch

    makers = (torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn)

    class Weightless(TorchFunctionMode):  # type: ignore[misc]
        """Puts large tensors on the meta device. Small ones are real: some are looked at."""

        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            kwargs = kwargs or {}
            if func in makers and elements(args, kwargs) > SMALL:
                kwargs = kwargs | {"device": "meta"}
            return func(*args, **kwargs)

    with torch.device("cpu"), Weightless() if weightless else nullcontext():
        model: torch.nn.Module = initialize_model(vllm_config=config)
    return model


def elements(args: Any, kwargs: dict[str, Any]) -> int:
    """How many elements a call such as `torch.empty(2, 3)` or `torch.empty((2, 3))` makes."""
    size = kwargs.get("size", args)
    while len(size) > 0 and not isinstance(size[0], int):
        size = size[0]
    return prod(n for n in size if isinstance(n, int))


def filtered(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What vLLM's own loader makes of a state: of tensors that share memory, one.

    Tensors without memory have no addresses to compare, so those that share get memory here; the
    loader's own choice among them is what counts.
    """
    from vllm.model_executor.model_loader.sharded_state_loader import ShardedStateLoader

    import torch

    shared: dict[int, list[str]] = {}
    for name, tensor in state.items():
        shared.setdefault(tensor.untyped_storage()._cdata, []).append(name)
    kept: dict[str, torch.Tensor] = {}
    for names in shared.values():
        storage = torch.empty(0)
        if len(names) > 1:
            size = state[names[0]].untyped_storage().nbytes()
            storage = torch.empty(size, dtype=torch.uint8, device="cpu")
        views = {}
        for name in names if len(names) > 1 else ():
            tensor = state[name]
            typed = torch.empty(0, dtype=tensor.dtype).set_(storage.untyped_storage())
            views[name] = typed.as_strided(tensor.size(), tensor.stride(), tensor.storage_offset())
        kept |= {name: state[name] for name in ShardedStateLoader._filter_subtensors(views)}
        kept |= {name: state[name] for name in names if not views and state[name].numel()}
    return kept


def wanted(model: torch.nn.Module) -> dict[str, list[Any]]:
    """Dtype and shape of every tensor that the sharded-state loader wants, by name."""
    found = filtered(dict(model.state_dict()))
    dtype = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in found.items()}
    return {
        name: [DTYPES.get(dtype[name], dtype[name]), list(tensor.shape)]
        for name, tensor in sorted(found.items())
    }


def forked(work: Any, *arguments: Any) -> Any:
    """The answer of `work` in a process of its own that has imported everything already.

    vLLM keeps ranks and layers in globals, so a process builds one model.
    """
    import multiprocessing

    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def run() -> None:
        try:
            sender.send((work(*arguments), None))
        except BaseException as error:
            sender.send((None, f"{type(error).__name__}: {error}"))

    process = context.Process(target=run)
    process.start()
    sender.close()
    try:
        answer, error = receiver.recv()
    except EOFError:
        answer, error = None, "the process died"
    process.join()
    if error:
        raise RuntimeError(error)
    return answer


def unknown_architecture(folder: str) -> str:
    """What vLLM has no class for; empty if it has one."""
    from vllm import ModelRegistry

    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    names = config.get("architectures") or []
    known = set(ModelRegistry.get_supported_archs())
    return "" if known & set(names) else ", ".join(map(str, names)) or "none is named"


def rank_wants(request: dict[str, Any], config: Any, rank: int) -> dict[str, list[Any]]:
    """What one rank wants, in this process."""
    with current(config):
        pretend_groups(request["tp"], request["pp"], rank)
        return wanted(build(config, weightless=True))


def probe(request: dict[str, Any]) -> dict[str, Any]:
    """The answer to a request."""
    try:
        prepare()
        import vllm
        from vllm.platforms import current_platform
    except ImportError as error:
        return {"failure": "no_engine", "error": str(error)}
    if failure := unknown_architecture(request["folders"][0]):
        return {"version": vllm.__version__, "failure": "architecture", "error": failure}
    answer: dict[str, Any] = {"version": vllm.__version__, "platform": current_platform.device_name}
    try:
        configs = {folder: engine_config(request, folder) for folder in set(request["folders"])}
    except Exception as error:
        return answer | {"failure": "config", "error": f"{type(error).__name__}: {error}"}
    answer["stand_ins"] = []
    if any(c.model_config.quantization == "fp8" for c in configs.values()):
        answer["stand_ins"] = stand_in_kernels()
    answer["ranks"] = []
    for pp, tp in request["ranks"]:
        config = configs[request["folders"][pp]]
        try:
            tensors = forked(rank_wants, request, config, pp * request["tp"] + tp)
        except RuntimeError as error:
            where = f"rank pp{pp}, tp{tp}"
            return answer | {"failure": "build", "error": f"{where}: {error}"}
        answer["ranks"].append({"pp": pp, "tp": tp, "tensors": tensors})
    return answer


def main(arguments: list[str]) -> None:
    """Answer the request in the file of the first argument in the file of the second."""
    request, answer = (Path(argument) for argument in arguments)
    # If vLLM ends the process, this tells that it was a Python.
    answer.write_text(json.dumps({"failure": "died", "error": "no answer"}), encoding="utf-8")
    found = probe(json.loads(request.read_text(encoding="utf-8")))
    answer.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
