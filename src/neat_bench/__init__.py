"""neat_bench: NEAT beside the other parameter-efficient fine-tuning methods, in one training loop."""

from neat_bench.torchvision_cpu import tolerate_cpu_torch

__version__ = "0.1.0"

tolerate_cpu_torch()
