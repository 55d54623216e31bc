"""Names of files and splits that several stages know."""

from cache.storage import AnyPath

CARD = "README.md"  # beside every model
RESULT = "training.json"  # the facts of a finished training
CURVE = "curve.jsonl"
LEFT_OUT = "left_out.jsonl"
PROGRESS = "progress.json"  # of a training that has not ended
CHECKPOINT = "checkpoint.safetensors"  # the same
# What a training leaves beside its model: it names files of the machine, and no reader of the model needs it.
OF_TRAINING = frozenset({RESULT, CURVE, LEFT_OUT, PROGRESS, CHECKPOINT})
VALIDATION = "validation"  # a split; in metrics it also stands where a further test has its corpus


def rows_path(metrics: AnyPath) -> AnyPath:
    """Returns the file of the utterances that lies beside a metrics file."""
    return metrics.with_suffix(".utterances.jsonl")
