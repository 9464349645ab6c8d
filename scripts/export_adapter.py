"""Write what a run trained for use elsewhere.

python scripts/export_adapter.py RUN --to peft [--out FOLDER]      for peft.PeftModel.from_pretrained
python scripts/export_adapter.py RUN --to merged [--out FOLDER]    a plain checkpoint without adapters

RUN is the record of a run with trainer.save_adapter=true (results/runs/.../seed0.json); FOLDER is beside it by default.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from neat_bench.errors import InputError
from neat_bench.export import FORMATS, export


def main() -> None:
    """Export and say where."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the run's record, a JSON file")
    parser.add_argument("--to", choices=FORMATS, required=True)
    parser.add_argument("--out", type=Path, help="folder to write; RUN's name with the format's as ending if left out")
    parser.add_argument("--config-dir", action="append", default=[], help="where the run's own configs are, if any")
    arguments = parser.parse_args()
    out = arguments.out or arguments.run.with_suffix(f".{arguments.to}")
    try:
        export(arguments.run, arguments.to, out, arguments.config_dir)
    except InputError as error:
        sys.exit(f"error: {error}")
    print(f"written: {out}")


if __name__ == "__main__":
    main()
