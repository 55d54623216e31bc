"""The training loop: reads top to bottom, and can be stopped and resumed at any step."""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from cache import files
from cache.errors import PipelineError
from cache.storage import AnyPath
from stages.prefetch import prefetch
from stages.train_student import checkpoint
from stages.train_student.data import Batch, TrainingData
from stages.train_student.losses import gate_mean
from stages.train_student.projection import Objective, projection_loss
from stages.train_student.settings import TrainSettings
from stages.train_student.trainee import Trainee

CURVE = "curve.jsonl"
Losses = dict[str, float]


class Run:
    """One training run. `total_steps` optimizer steps of `accumulate` batches each.

    validate: returns {"wer": ..., "cer": ...} of the model as it is; save_best: called whenever the WER is the lowest yet.
    """

    def __init__(
        self,
        trainee: Trainee,
        data: TrainingData,
        settings: TrainSettings,
        learning_rate: float,
        dtype: torch.dtype,
        folder: AnyPath,
        validate: Callable[[], dict[str, float]],
        save_best: Callable[[checkpoint.Position], None],
    ):
        self.trainee, self.data, self.settings, self.dtype, self.folder = trainee, data, settings, dtype, folder
        self.validate, self.save_best, self.learning_rate = validate, save_best, learning_rate
        self.device = next(iter(trainee.parameters.values())).device
        self.steps_per_epoch = math.ceil(len(data) / (settings.batch_size * settings.accumulate))
        self.total_steps = settings.max_steps or max(1, round(settings.epochs * self.steps_per_epoch))
        # fused: one pass over the weights, on the CPU too
        self.optimizer = torch.optim.AdamW(
            list(trainee.parameters.values()),
            learning_rate,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
            fused=True,
        )

    def train(self, progress: Callable[[int, int, Losses], None]) -> checkpoint.Position:
        """Trains to the end; progress is called with steps done, steps in all, and the step's losses."""
        torch.manual_seed(self.settings.seed)
        position = checkpoint.load(self.folder, self.trainee, self.optimizer)
        self._cut_curve(position.step)
        progress(position.step, self.total_steps, {})
        for batches in prefetch(self._steps(position.step)):
            position.unlogged.append(self._step(batches, position.step))
            position.step += 1
            progress(position.step, self.total_steps, position.unlogged[-1])
            if position.step % self.settings.log_every == 0 or position.step == self.total_steps:
                self._log({"step": position.step, "epoch": self._epoch(position.step), **_means(position.unlogged)})
                position.unlogged = []
            if validated := self._is_validation(position.step):
                position = self._validate(position)
            if validated or position.step % self.settings.save_every == 0:
                checkpoint.save(self.folder, self.trainee, self.optimizer, position)
        return position

    def _steps(self, start: int) -> Iterator[list[Batch]]:
        """The batches of each optimizer step from step number `start` on."""
        accumulate, size = self.settings.accumulate, self.settings.batch_size
        for step in range(start, self.total_steps):
            epoch, within = divmod(step, self.steps_per_epoch)
            if step == start or within == 0:
                batches = self.data.batches(size, self.settings.seed, epoch, within * accumulate)
            yield [batch for _, batch in zip(range(accumulate), batches, strict=False)]

    def _step(self, batches: list[Batch], step: int) -> Losses:
        """One optimizer step. Losses are summed over all its positions and divided once by their number."""
        share = step / self.total_steps
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * _schedule(step, self.total_steps, self.settings.warmup)
        self.trainee.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        positions = sum(len(batch.targets) for batch in batches)
        losses: Losses = {}
        for batch in batches:
            loss, parts = self._loss(batch, positions, self.settings.gate_noise * share)
            if not torch.isfinite(loss):
                self._refuse("loss", step, batches)
            loss.backward()
            losses = {name: losses.get(name, 0.0) + value for name, value in parts.items()}
        norm = torch.nn.utils.clip_grad_norm_(self.trainee.parameters.values(), self.settings.max_grad_norm)
        if not torch.isfinite(norm):
            self._refuse("gradient", step, batches)
        self.optimizer.step()
        return {**losses, "learning_rate": self.optimizer.param_groups[0]["lr"]}

    def _loss(self, batch: Batch, positions: int, noise: float) -> tuple[torch.Tensor, Losses]:
        """This batch's share of the step's loss, L_CE + w_gate L_gate + w_kd L_KD, and its parts."""
        settings, share = self.settings, len(batch.targets) / positions
        autocast = torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)
        with autocast, self.trainee.route(noise) as routing:
            hidden_BTD = self.trainee.hidden(batch.features.to(self.device), batch.decoder_input_ids.to(self.device))
            # padding is left behind here: only real target positions reach the projection and the losses
            sums = projection_loss(
                hidden_BTD[batch.positions],
                self.trainee.whisper.model.proj_out.weight,
                batch.targets.to(self.device),
                Objective(settings.label_smoothing, 1, settings.kd_weight, settings.kd_divergence, settings.kd_tail),
                batch.teacher and batch.teacher.to(self.device),
                None if self.data.tail_V is None else self.data.tail_V.to(self.device),
            )
        loss, parts = sums.total / positions, {"ce": sums.cross_entropy / positions}
        if batch.teacher is not None:
            parts["kd"] = sums.divergence / positions
        if routing.gates:
            mean = gate_mean(routing.gates, batch.encoder_mask.to(self.device), batch.decoder_mask.to(self.device))
            gate = (mean - settings.gate_budget).abs()
            loss = loss + share * settings.gate_weight * gate
            parts |= {"gate": share * gate, "gate_mean": share * mean}
        parts = {"loss": loss, **parts}
        # to the host all at once
        return loss, dict(zip(parts, torch.stack([part.detach() for part in parts.values()]).tolist(), strict=True))

    def _refuse(self, what: str, step: int, batches: list[Batch]) -> None:
        names = ", ".join(name for batch in batches for name in batch.ids)
        raise PipelineError(
            f"{what} is not finite at step {step + 1}, before the weights were changed; lower learning_rate or look at "
            f"these utterances: {names}"
        )

    def _is_validation(self, step: int) -> bool:
        return step == self.total_steps or step % (self.settings.validate_every or self.steps_per_epoch) == 0

    def _validate(self, position: checkpoint.Position) -> checkpoint.Position:
        self.trainee.model.eval()
        rates = self.validate()
        self._log(
            {
                "step": position.step,
                "epoch": self._epoch(position.step),
                "validation_wer": rates["wer"],
                "validation_cer": rates["cer"],
            }
        )
        if rates["wer"] < position.best_wer:
            position = replace(position, best_step=position.step, best_wer=rates["wer"])
            self.save_best(position)
        return position

    def _epoch(self, step: int) -> float:
        return round(step / self.steps_per_epoch, 4)

    def _log(self, row: dict[str, float]) -> None:
        files.append_text(self.folder / CURVE, json.dumps(row) + "\n")

    def _cut_curve(self, step: int) -> None:
        """Rows beyond the checkpoint come again, and so does one that a full disk cut short."""
        path = self.folder / CURVE
        if path.exists():
            lines = path.read_text(encoding="utf-8").split("\n")[:-1]
            kept = [line for line in lines if json.loads(line)["step"] <= step]
            files.write_text(path, "".join(f"{line}\n" for line in kept))


def _schedule(step: int, total: int, warmup: float) -> float:
    """Linear warm-up, then linear decay to nothing."""
    rising = round(warmup * total)
    if step < rising:
        return (step + 1) / rising
    return (total - step) / max(1, total - rising)


def _means(rows: list[Losses]) -> Losses:
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
