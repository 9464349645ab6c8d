"""Run a grid of configs/grid and turn it into tables and figures; what is recorded already is not repeated.

python scripts/run_grid.py embedded                       into results/grids/embedded
python scripts/run_grid.py glue paths.data=DATA           overrides that change no result may follow
python scripts/run_grid.py glue --dataset glue/rte        one data set of it alone
"""

import argparse
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from neat_bench.config import CONFIGS, OUTSIDE_THE_RESULT, load_named
from neat_bench.errors import InputError, nearest
from neat_bench.grid import Grid, run_grid


def main() -> None:
    """Run the grid, then its table; exit with 1 and one line where that cannot be done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grid", help="name of a file in configs/grid")
    parser.add_argument("--dataset", action="append", help="run this data set of the grid alone; may be repeated")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="paths, launcher, logger, checkpoint")
    arguments = parser.parse_intermixed_args()  # options may follow the grid's name
    try:
        grid = load_named(Grid, "grid", arguments.grid)
        for override in arguments.overrides:
            if override.split("=")[0].split(".")[0] not in OUTSIDE_THE_RESULT:
                raise InputError(f"{override} would change results: a grid's runs are what its file says")
        for dataset in arguments.dataset or []:
            if dataset not in grid.datasets:
                raise InputError(f"grid {arguments.grid} has no data set '{dataset}'{nearest(dataset, grid.datasets)}")
        grid.datasets = {name: grid.datasets[name] for name in arguments.dataset or grid.datasets}
        given = [each.partition("=")[2] for each in arguments.overrides if each.startswith("paths.results=")]
        results = given[-1] if given else str(CONFIGS.parent / "results" / "grids" / arguments.grid)
        run_grid(grid, ["logger=none", f"paths.results={results}", *arguments.overrides])
    except InputError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from here", file=sys.stderr)
        sys.exit(130)
    make = [sys.executable, str(CONFIGS.parent / "scripts" / "make_tables.py"), "--grid", arguments.grid]
    sys.exit(subprocess.run([*make, "--results", results, "--print"]).returncode)


if __name__ == "__main__":
    main()
