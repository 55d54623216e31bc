"""Names of files and splits that several stages know."""

CARD = "README.md"  # beside every model
RESULT = "training.json"  # the facts of a finished training
CURVE = "curve.jsonl"
LEFT_OUT = "left_out.jsonl"
PROGRESS = "progress.json"  # of a training that has not ended
CHECKPOINT = "checkpoint.safetensors"  # the same
# What a training leaves beside its model: it names files of the machine, and no reader of the model needs it.
OF_TRAINING = frozenset({RESULT, CURVE, LEFT_OUT, PROGRESS, CHECKPOINT})
VALIDATION = "validation"  # a split; in metrics it also stands where a further test has its corpus
