"""Planned against measured on a CUDA GPU: `benchmarks/memory_plan.py` with `max_memory_allocated`, in bfloat16.

python benchmarks/gpu/memory_plan.py                            # SmolLM2-135M; writes gpu_memory_plan.json
python benchmarks/gpu/memory_plan.py --model FOLDER --cases sft_qlora grpo_qlora
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import memory_plan


def main() -> int:
    sys.argv += ["--gpu", "--name", "gpu_memory_plan"]
    memory_plan.read_options(__doc__)  # --help asks for no GPU
    import torch

    if not torch.cuda.is_available():
        print(
            f"error: no CUDA GPU: torch.cuda.is_available() is False (torch {torch.__version__})\n\n"
            "hint: python benchmarks/memory_plan.py measures resident memory on a CPU",
            file=sys.stderr,
        )
        return 2
    return memory_plan.main()


if __name__ == "__main__":
    sys.exit(main())
