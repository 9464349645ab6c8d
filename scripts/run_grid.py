"""Run a grid of configs/grid and turn it into tables and figures; what is recorded already is not repeated.

python scripts/run_grid.py embedded                       into results/grids/embedded
python scripts/run_grid.py glue paths.data=DATA           overrides that change no result may follow
python scripts/run_grid.py glue --dataset glue/rte        one data set of it alone
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from omegaconf import OmegaConf

from neat_bench.config import CONFIGS, OUTSIDE_THE_RESULT, build_dataclass
from neat_bench.errors import InputError, nearest
from neat_bench.grid import Grid, run_grid


def main() -> None:
    """Run the grid, then its table; exit with 1 and one line where that cannot be done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grid", help="name of a file in configs/grid")
    parser.add_argument("--dataset", action="append", help="run this data set of the grid alone; may be repeated")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="paths, launcher, logger, checkpoint")
    arguments = parser.parse_args()
    paths = {path.stem: path for path in sorted((CONFIGS / "grid").glob("*.yaml"))}
    # relative: a record keeps its command line, and that is no place for the paths of a machine
    results = Path(os.path.relpath(CONFIGS.parent / "results" / "grids" / arguments.grid))
    try:
        if arguments.grid not in paths:
            raise InputError(f"unknown grid '{arguments.grid}'{nearest(arguments.grid, paths)}")
        for override in arguments.overrides:
            if override.split("=")[0].split(".")[0] not in OUTSIDE_THE_RESULT:
                raise InputError(f"{override} would change results: a grid's runs are what its file says")
        values = OmegaConf.to_container(OmegaConf.load(paths[arguments.grid]))
        grid = build_dataclass(Grid, values, f"grid {arguments.grid}")
        for dataset in arguments.dataset or []:
            if dataset not in grid.datasets:
                raise InputError(f"grid {arguments.grid} has no data set '{dataset}'{nearest(dataset, grid.datasets)}")
        grid.datasets = {name: grid.datasets[name] for name in arguments.dataset or grid.datasets}
        run_grid(grid, ["logger=none", f"paths.results={results}", *arguments.overrides])
    except InputError as error:
        sys.exit(f"error: {error}")
    make = [sys.executable, str(CONFIGS.parent / "scripts" / "make_tables.py"), "--results", str(results), "--print"]
    sys.exit(max(subprocess.run([*make, "--table", table]).returncode for table in grid.tables))


if __name__ == "__main__":
    main()
