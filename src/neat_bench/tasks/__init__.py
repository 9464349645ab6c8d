"""Tasks: what a suite asks of a model (head, collation, loss and prediction)."""

from neat_bench.data.images import ImageClassification
from neat_bench.data.instructions import Instructions
from neat_bench.data.spec import Data, DatasetSpec
from neat_bench.data.text import TextClassification
from neat_bench.errors import InputError
from neat_bench.tasks.causal_lm import CausalLM
from neat_bench.tasks.image_classification import ImageTask
from neat_bench.tasks.sequence_classification import SequenceClassification

Task = SequenceClassification | ImageTask | CausalLM


def make_task(spec: DatasetSpec, data: Data) -> Task:
    """Return the task that a data set's kind asks for."""
    if isinstance(spec, ImageClassification):
        return ImageTask(data, spec=spec)
    if isinstance(spec, TextClassification):
        return SequenceClassification(data, max_length=spec.max_length)
    if isinstance(spec, Instructions):
        return CausalLM(spec)
    raise InputError(f"dataset {spec.name}: no task for a {type(spec).__name__}")
