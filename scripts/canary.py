"""Has a dependency moved the numbers? Runs a few pinned steps and compares the losses with the stored ones.

python scripts/canary.py            exits with 1 where a loss has moved, and names the packages that changed
python scripts/canary.py --update   stores the losses of this machine; find out first why they moved
"""

import argparse
import contextlib
import io
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from neat_bench.canary import STORED, TOLERANCE, measure, moved, read_stored
from neat_bench.files import write_whole


def main() -> None:
    """Compare, or store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", action="store_true", help="store what is measured now")
    arguments = parser.parse_args()
    stored, found, packages, late = read_stored(), {}, {}, []
    for method, expected in stored["losses"].items():
        with contextlib.redirect_stdout(io.StringIO()):
            losses, packages = measure(method)
        found[method] = [round(loss, 5) for loss in losses]
        distance = moved(losses, expected)
        late += [method] * (distance > TOLERANCE)
        print(f"{method}: {'moved' if distance > TOLERANCE else 'as stored'} (largest distance {distance:.1e})")
    if arguments.update:
        text = json.dumps({"losses": found, "packages": packages}, indent=1)
        write_whole(STORED, lambda path: path.write_text(text + "\n"))
    elif late:
        names = sorted(packages.keys() | stored["packages"].keys())
        then, now = stored["packages"], packages
        changed = [f"{n} {then.get(n, '-')} -> {now.get(n, '-')}" for n in names if then.get(n) != now.get(n)]
        sys.exit(f"the losses of {', '.join(late)} have moved; changed packages: {', '.join(changed) or 'none'}")


if __name__ == "__main__":
    main()
