"""The torchvision trap, handled here and nowhere else.

PyPI's torchvision wheel expects a CUDA build of torch. Beside a CPU build its compiled operators do not
load, `import torchvision` then fails while it registers their meta kernels ("operator torchvision::nms
does not exist"), and with it transformers' image classes, timm and peft. Nothing here needs those
operators, so an empty module takes the place of the one that fails. A matching CPU torchvision
("+cpu") and every CUDA installation are left alone.
"""

import sys
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType


def tolerate_cpu_torch() -> None:
    """Make `import torchvision` work beside a CPU build of torch; must run before that import."""
    try:
        mismatched = version("torch").endswith("+cpu") and not version("torchvision").endswith("+cpu")
    except PackageNotFoundError:
        return
    if mismatched:
        name = "torchvision._meta_registrations"
        sys.modules.setdefault(name, ModuleType(name))
