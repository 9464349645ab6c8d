"""Many short runs in one sweep, to see that nothing grows: the sweep's memory, its open files, its threads.

python scripts/soak.py --jobs 300 --devices 2        37 minutes on 2 CPU cores that had other work too
"""

import argparse
import json
import sys
import tempfile
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import numpy as np
import psutil

from neat_bench.config import compose
from neat_bench.sweep import plan, run_sweep

SECONDS = 5.0


def main() -> None:
    """Run the sweep, watch it, print what it took at its start and at its end; exit with 1 if something grew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=300)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--override", action="append", default=[], help="of every run, such as model.path=...")
    arguments = parser.parse_args()
    process, seen, ended = psutil.Process(), [], threading.Event()

    def watch() -> None:
        while not ended.wait(SECONDS):
            seen.append((process.memory_info().rss / 2**20, process.num_fds(), process.num_threads()))

    with tempfile.TemporaryDirectory() as folder:
        common = [
            "method=linear_probe", "logger=none", "trainer.max_steps=1", "trainer.limit_train=8",
            "trainer.limit_evaluation=8", f"launcher.devices={arguments.devices}", f"paths.results={folder}/results",
            f"paths.cache={folder}/cache", f"paths.logs={folder}/logs", *arguments.override,
        ]  # fmt: skip
        overrides = [[*common, f"seed={seed}"] for seed in range(arguments.jobs)]
        jobs = plan(overrides, [compose(each) for each in overrides])
        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            run_sweep(jobs, [])
        finally:
            ended.set()
            watcher.join()
        records = [json.loads(path.read_text()) for path in Path(folder).rglob("seed*.json")]
        left = [path.name for path in Path(folder).rglob("*") if path.suffix in (".lock", ".queued")]
    tenth = max(len(seen) // 10, 1)
    first, last = np.median(seen[tenth : 2 * tenth], axis=0), np.median(seen[-tenth:], axis=0)
    for name, before, after in zip(("memory MiB", "open files", "threads"), first, last, strict=True):
        print(f"{name:12} {before:8.1f} {after:8.1f}")
    peaks = np.array([record["cost"]["peak_memory_bytes"] for record in sorted(records, key=lambda r: r["seed"])])
    print(f"recorded     {len(records)} of {arguments.jobs}, claims left {len(left)}; a job's peak memory, first and "
          f"last tenth: {np.median(peaks[: len(peaks) // 10 + 1]) / 2**20:.0f} and "
          f"{np.median(peaks[-(len(peaks) // 10 + 1) :]) / 2**20:.0f} MiB")  # fmt: skip
    grew = last[0] > first[0] * 1.05 + 5 or last[1] > first[1] + 4 or last[2] > first[2] + 2
    sys.exit("something grew" if grew or len(records) != arguments.jobs or left else 0)


if __name__ == "__main__":
    main()
