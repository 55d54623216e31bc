"""The training recipe. The defaults are the paper's (arXiv 2311.01070, section 4.2, and its published scripts)."""

from typing import Any, Literal

from pydantic import Field, model_validator

from stages.shared.methods import learning_rates
from stages.shared.settings import Settings
from stages.shared.student.forms import Gates
from stages.train_student.token_weights import TokenWeights

Tracker = Literal["tensorboard", "trackio", "wandb", "dvclive"]

# Settings that are not of the recipe. The dtype that was taken is recorded beside it.
NO_RECIPE = {"dtype", "log_every", "save_every", "track", "verify"}


class TrainSettings(Settings):
    epochs: float = Field(10, gt=0, description="passes over the training utterances; fractions are fine")
    max_steps: int | None = Field(None, ge=1, description="optimizer steps; overrides epochs")
    train_fraction: float = Field(1.0, gt=0, le=1, description="share of the utterances trained on, in whole groups")
    timestamps: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the utterances whose targets also say when the clip begins and ends, in Whisper's tokens of "
        "time; the teacher's shards are made with the same share",
    )
    batch_size: int = Field(8, ge=1)
    accumulate: int = Field(2, ge=1, description="batches per optimizer step")
    learning_rate: float | None = Field(None, gt=0, description=f"null: the method's own, {learning_rates()}")
    warmup: float = Field(0.1, ge=0, le=1, description="share of the steps")
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    ce_weight: float = Field(1.0, ge=0)
    kd_weight: float = Field(2.0, ge=0)
    kd_divergence: Literal["js", "kl"] = "js"
    kd_tail: Literal["bucket", "spread", "renormalise"] = Field(
        "bucket",
        description="what becomes of the teacher's mass outside its kept tokens: bucket compares it as one bin; spread (kl "
        "only) distributes it like the cache's mean tail; renormalise drops it, which is biased and for comparison only",
    )
    token_weights: TokenWeights = Field(
        "none",
        description="weights of the cross-entropy of the teacher's own words: none; the teacher's probability of each token; "
        "entropy: exp(-H), one over the number of tokens that it is undecided between; transcripts' tokens weigh 1",
    )
    max_teacher_wer: float | None = Field(
        None,
        ge=0,
        description="leave out utterances that the teacher itself transcribes with more word errors per word",
    )
    min_mean_log_prob: float | None = Field(
        None,
        le=0,
        description="leave out targets whose mean log-probability per token by the teacher is less (natural log)",
    )
    max_compression_ratio: float | None = Field(
        2.4,
        gt=0,
        description="leave out the teacher's own words where their compression ratio is higher: they repeat themselves",
    )
    gate_weight: float = Field(1.0, ge=0)
    gate_budget: float = Field(0.5, ge=0, le=1, description="the mean gate that the gate loss asks for")
    gate_budget_start: float | None = Field(
        None,
        ge=0,
        le=1,
        description="the budget at the first step; it moves linearly to gate_budget; null: it is constant",
    )
    gate_start: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="the value that gates begin at; near 1 the experts are trained at full strength at first",
    )
    gate_training: Literal["soft", "hard"] = Field(
        "soft",
        description="soft: training mixes shared block and expert; hard: each token takes one of them, as at inference, and "
        "the gates are trained by the gradient of the soft gate (straight-through)",
    )
    gate_positions: Literal["real", "all"] = Field(
        "real",
        description="which gates the budget counts; all: also those of padding, in the window and after the transcript",
    )
    gate_dropout: float = Field(0.1, ge=0, lt=1, description="dropout on the gates' input")
    gate_noise: float = Field(5.0, ge=0, description="alpha at the end of the run; alpha rises linearly from 0")
    skip_gate: float = Field(0.2, ge=0, le=1)
    gates: Gates = Field(
        "token",
        description="what a gate decides for: each token, or the whole of its layer; none: the expert takes every token, "
        "and the settings of gates have no part",
    )
    expert_dropout: float = Field(0.3, ge=0, lt=1)
    expert_layers: Literal["all", "encoder", "decoder"] | list[str] = Field(
        "all", description="the layers that have an expert; a list has names such as encoder.layers.0"
    )
    expert_rank: int | None = Field(
        None, ge=1, description="train an expert as a change of this rank of each FFN matrix; null: as a full copy"
    )
    lora_rank: int = Field(64, ge=1)
    lora_alpha: float = Field(64, gt=0, description="scales an adapter's product: lora_alpha / lora_rank")
    lora_dropout: float = Field(
        0.05, ge=0, lt=1, description="dropout on the input of adapters and of experts of low rank"
    )
    validate_every: int | None = Field(None, ge=1, description="steps; null: at the end of each epoch")
    max_validation: int = Field(500, ge=1, description="utterances decoded at each validation")
    save_every: int = Field(200, ge=1, description="steps between checkpoints")
    log_every: int = Field(10, ge=1, description="steps between rows of the curve")
    spec_augment: bool = Field(False, description="mask stretches of the student's input while it trains (SpecAugment)")
    mask_time_prob: float = Field(0.05, ge=0, le=1, description="share of the frames; less where stretches overlap")
    mask_time_length: int = Field(10, ge=1, description="frames of 10 ms")
    mask_feature_prob: float = Field(0.1, ge=0, le=1, description="share of the mel bins")
    mask_feature_length: int = Field(10, ge=1, description="mel bins")
    gradient_checkpointing: bool = Field(
        False,
        description="keep only the inputs of the layers, and compute the layers again for the gradient: less memory, more time",
    )
    start_from: str | None = Field(
        None,
        description="a folder with an expert or an adapter of another language, to begin as; null: begin as the base",
    )
    track: list[Tracker] = Field(
        [],
        description="experiment trackers that get the curve, each an extra of its name: tensorboard, trackio, wandb, dvclive; "
        "the first and the last write to paths.runs",
    )
    seed: int = Field(0, ge=0)
    verify: bool = Field(False, description="before training, check the hash of every shard, and not only its size")
    dtype: Literal["auto", "bf16", "fp32"] = "auto"

    def recipe(self) -> dict[str, Any]:
        """Returns the settings that weights depend on. No `timestamps` is left out, as in older runs."""
        return self.model_dump(exclude=NO_RECIPE if self.timestamps else NO_RECIPE | {"timestamps"})

    @model_validator(mode="after")
    def _spread_needs_kl(self) -> "TrainSettings":
        if self.kd_tail == "spread" and self.kd_divergence != "kl":
            raise ValueError("kd_tail 'spread' goes with kd_divergence 'kl' alone: take 'bucket' for 'js'")
        return self


class AdaptSettings(TrainSettings):
    """The recipe that fine-tunes a teacher."""

    folds: int = Field(
        1,
        ge=1,
        description="1: one teacher, trained on the utterances that it scores; 2 or more: one teacher for each part of the "
        "training split, trained on the other parts, so that no teacher scores what it was trained on",
    )

    @property
    def of_each(self) -> TrainSettings:
        """The recipe of one teacher. With folds it takes as many passes over its smaller part: max_steps is less."""
        recipe = TrainSettings(**self.model_dump(exclude={"folds"}))
        if self.folds == 1 or self.max_steps is None:
            return recipe
        return recipe.model_copy(update={"max_steps": max(1, round(self.max_steps * (1 - 1 / self.folds)))})
