"""Tasks: what a suite asks of a model (head, collation, loss and prediction)."""

from neat_bench.data.images import ImageClassification
from neat_bench.data.spec import Data, DatasetSpec
from neat_bench.data.text import TextClassification
from neat_bench.errors import InputError
from neat_bench.tasks.image_classification import ImageTask
from neat_bench.tasks.sequence_classification import SequenceClassification

Task = SequenceClassification | ImageTask


def make_task(spec: DatasetSpec, data: Data) -> Task:
    """Return the task that a data set's kind asks for."""
    if isinstance(spec, ImageClassification):
        return ImageTask(data, spec)
    if isinstance(spec, TextClassification):
        return SequenceClassification(data, spec.max_length)
    raise InputError(f"dataset {spec.name}: no task for a {type(spec).__name__}")
