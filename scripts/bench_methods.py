"""Measure step time and memory of each method, ours beside peft's, and whole runs beside transformers' Trainer.

python scripts/bench_methods.py                                      5 minutes on 2 CPU cores
python scripts/bench_methods.py --device cuda                        the large shapes, bf16
python scripts/bench_methods.py --dataset glue/sst2 --data data      whole runs on another text data set

Writes results/bench/<device>.json and .md: ratios, never bare seconds.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import neat_bench  # noqa: F401  before torch: it makes torchvision importable beside a CPU torch
from neat_bench.errors import InputError


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--rounds", default=9, type=int, help="of single layers; whole runs take a third")
    parser.add_argument("--items", default=640, type=int, help="training rows of a whole run")
    parser.add_argument("--dataset", default="packaged/gloss_polarity", help="a text data set for the whole runs")
    parser.add_argument("--data", default="data", help="paths.data")
    parser.add_argument("--only", choices=("layers", "runs"), help="one of the two parts")
    parser.add_argument("--output", default=Path("results/bench"), type=Path)
    arguments = parser.parse_args()
    import torch

    from neat_bench.benchmark.layers import SHAPES
    from neat_bench.benchmark.layers import measure as measure_layer
    from neat_bench.benchmark.report import file_name, to_markdown
    from neat_bench.benchmark.runs import measure as measure_run
    from neat_bench.files import write_whole
    from neat_bench.results.record import environment

    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit("error: --device cuda needs a CUDA device and a CUDA build of torch; leave it out for the CPU")
    device, found = arguments.device, {"environment": environment(arguments.device, 1), "layers": [], "runs": []}
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    try:
        for shape in SHAPES[device] if arguments.only != "runs" else []:
            print(f"{shape.name} ...", flush=True)
            found["layers"].append(measure_layer(shape, device, dtype, arguments.rounds, round_seconds=0.1))
        if arguments.only != "layers":
            print(f"whole runs on {arguments.dataset} ...", flush=True)
            rounds = max(1, arguments.rounds // 3)
            found["runs"].append(measure_run(arguments.dataset, arguments.data, device, arguments.items, rounds))
        stem = arguments.output / file_name(found["environment"]["device"])
        write_whole(stem.with_suffix(".json"), lambda path: path.write_text(json.dumps(found, indent=2) + "\n"))
        write_whole(stem.with_suffix(".md"), lambda path: path.write_text(to_markdown(found)))
    except InputError as error:
        sys.exit(f"error: {error}")
    print(f"\n{to_markdown(found)}\nwritten to {stem}.json and {stem}.md")


if __name__ == "__main__":
    main()
