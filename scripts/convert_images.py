"""Turn an archive of images into the parquet layout, with checksums.

python scripts/convert_images.py folders FOLDER data/vision/cars                       <split>/<class>/<image>
python scripts/convert_images.py folders FOLDER data/vision/cars --test-share 0.2      <class>/<image>
python scripts/convert_images.py lists vtab-1k/clevr_count data/vtab1k/clevr_count     VTAB-1k's list files
python scripts/convert_images.py lists FOLDER data/my/set train=train.txt test=test.txt
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from neat_bench.data.image_archives import VTAB_LISTS, convert, from_class_folders, from_lists
from neat_bench.errors import InputError


def main() -> None:
    """Write the splits and say how many rows each has."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("layout", choices=("folders", "lists"))
    parser.add_argument("source", type=Path, help="the unpacked archive")
    parser.add_argument("target", type=Path, help="<paths.data>/<suite>/<task>")
    parser.add_argument("lists", nargs="*", metavar="SPLIT=FILE", help="list files, if not VTAB-1k's")
    parser.add_argument("--test-share", type=float, help="of class folders without splits: the share that tests")
    arguments = parser.parse_args()
    lists = dict(pair.split("=", 1) for pair in arguments.lists if "=" in pair) or VTAB_LISTS
    try:
        if arguments.layout == "lists":
            archive = from_lists(arguments.source, lists)
        else:
            archive = from_class_folders(arguments.source, arguments.test_share)
        for file, facts in convert(archive, arguments.target).items():
            print(f"{arguments.target / file}: {facts['rows']} rows, sha256 {facts['sha256'][:12]}")
    except InputError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
