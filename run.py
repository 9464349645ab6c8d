"""The entry: `python run.py method=neat dataset=glue/sst2`; `python run.py --help` lists the rest."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))  # this checkout, installed or not

from neat_bench.cli import main

if __name__ == "__main__":
    main()
