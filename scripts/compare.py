"""What differs between two runs: config, versions, result and items.

python scripts/compare.py RUN_A RUN_B      two records, such as results/runs/.../seed0.json
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from neat_bench.evaluation.protocols import PROTOCOLS
from neat_bench.results.compare import compare_runs
from neat_bench.results.store import read_record


def main() -> None:
    """Print the differences, A | B."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs=2, type=Path, metavar="RUN")
    parser.add_argument("--protocol", default="split_validation", choices=PROTOCOLS)
    arguments = parser.parse_args()
    try:
        ours, theirs = (read_record(path) | {"path": str(path)} for path in arguments.runs)
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(compare_runs(ours, theirs, arguments.protocol))


if __name__ == "__main__":
    main()
