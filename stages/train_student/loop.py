"""The training loop. It can be stopped and resumed at any step."""

# Shapes: B rows, T decoder positions, D width of the decoder.

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch

from cache import files
from cache.errors import PipelineError
from cache.progress import Progress
from cache.storage import AnyPath
from stages.shared.layout import CURVE
from stages.shared.prefetch import prefetch
from stages.shared.whisper.device import deterministic
from stages.train_student import checkpoint
from stages.train_student.batches import Batch
from stages.train_student.chunked_loss import projection_loss
from stages.train_student.data import TrainingData
from stages.train_student.losses import Objective, gate_sum
from stages.train_student.mixture import Mixture
from stages.train_student.processes import SINGLE_PROCESS, Processes
from stages.train_student.settings import TrainSettings
from stages.train_student.trainee import Trainee

Losses = dict[str, float]


def ignore(row: Losses) -> None:
    """Sends a row of the curve nowhere."""


class TrainingLoop:
    """Takes `total_steps` optimizer steps of `accumulate` batches each, on every one of `processes`.

    validate: returns {"wer": ..., "cer": ...} of the model as it is, and any other rate for the curve.
    save_best: is called whenever the WER is the lowest yet.
    """

    def __init__(
        self,
        trainee: Trainee,
        data: TrainingData | Mixture,
        settings: TrainSettings,
        dtype: torch.dtype,
        folder: AnyPath,
        validate: Callable[[], dict[str, float]],
        save_best: Callable[[checkpoint.Position], None],
        processes: Processes = SINGLE_PROCESS,
    ):
        self.trainee, self.data, self.settings, self.dtype, self.folder = trainee, data, settings, dtype, folder
        self.validate, self.save_best, self.objective = validate, save_best, Objective.of(settings)
        self.device = next(iter(trainee.parameters.values())).device
        self.processes = processes
        self.steps_per_epoch = math.ceil(len(data) / (settings.batch_size * settings.accumulate * processes.count))
        self.total_steps = settings.max_steps or max(1, round(settings.epochs * self.steps_per_epoch))
        # fused: one pass over the weights, also on a CPU
        self.optimizer = torch.optim.AdamW(
            list(trainee.parameters.values()),
            trainee.learning_rate,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
            fused=True,
        )

    def train(self, progress: Progress[Losses], track: Callable[[Losses], None] = ignore) -> checkpoint.Position:
        """Trains to the end.

        progress: is called with steps done, steps in all, and the losses of the step. track: with each row of the curve.
        """
        self.track = track
        torch.manual_seed(self.settings.seed + self.processes.rank)
        position = checkpoint.load(self.folder, self.trainee, self.optimizer, self.processes)
        self._check_folder(position.step)
        if self.processes.main:
            self._cut_curve(position.step)
        progress(position.step, self.total_steps, {})
        for batches in self.processes.agreed(prefetch(self._steps(position.step))):
            position.unlogged.append(self._step(batches, position.step))
            position.step += 1
            progress(position.step, self.total_steps, position.unlogged[-1])
            if position.step % self.settings.log_every == 0 or position.step == self.total_steps:
                self._log({"step": position.step, "epoch": self._epoch(position.step), **_means(position.unlogged)})
                position.unlogged = []
            if validated := self._is_validation(position.step):
                position = self._validate(position)
            if validated or position.step % self.settings.save_every == 0:
                checkpoint.save(self.folder, self.trainee, self.optimizer, position, self.processes)
        return position

    def _check_folder(self, step: int) -> None:
        if self.processes.sum([step])[0] != step * self.processes.count:
            raise PipelineError(
                f"{self.folder}: not all processes see the same checkpoint: give a folder that they share"
            )

    def _steps(self, start: int) -> Iterator[list[Batch | None]]:
        """Yields the batches of each optimizer step from number `start` on; None stands for one that only others have."""
        accumulate, size, here = self.settings.accumulate, self.settings.batch_size, self.processes
        for step in range(start, self.total_steps):
            epoch, within = divmod(step, self.steps_per_epoch)
            if step == start or within == 0:
                batches = self.data.batches(size, self.settings.seed, epoch, within * accumulate, here.rank, here.count)
            yield [batch for _, batch in zip(range(accumulate), batches, strict=False)]

    def _step(self, batches: Sequence[Batch | None], step: int) -> Losses:
        """Takes one optimizer step. Losses are summed over its positions on all processes, and divided once by their number."""
        share = step / self.total_steps
        for group in self.optimizer.param_groups:
            group["lr"] = self.trainee.learning_rate * _schedule(step, self.total_steps, self.settings.warmup)
        self.trainee.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        own = [batch for batch in batches if batch is not None]
        positions = round(self.processes.sum([sum(len(batch.targets) for batch in own)])[0])
        parts = dict.fromkeys(self._parts(), 0.0)
        with deterministic(self.device):
            for batch in batches:
                loss, found = self._loss(batch, positions, share)
                if loss.requires_grad:
                    loss.backward()
                parts = {name: value + found.get(name, 0.0) for name, value in parts.items()}
        self._sum_gradients(parts, step, own)
        norm = torch.nn.utils.clip_grad_norm_(self.trainee.parameters.values(), self.settings.max_grad_norm)
        if not torch.isfinite(norm):
            raise self._not_finite("gradient", step, own)
        self.optimizer.step()
        losses = dict(zip(parts, self.processes.sum(list(parts.values())), strict=True))
        total = self.objective.total(*(losses.get(name, 0.0) for name in ("ce", "kd", "gate")))
        return {"loss": total, **losses, "learning_rate": self.optimizer.param_groups[0]["lr"]}

    def _parts(self) -> list[str]:
        """Names what the loss is made of, and the mean gate."""
        distilled = ["kd"] if self.data.tail_V is not None else []
        return ["ce", *distilled, *(["gate", "gate_mean"] if self.trainee.gated else [])]

    def _sum_gradients(self, parts: Losses, step: int, batches: list[Batch]) -> None:
        """Sums gradients over all processes. All end where one has a value that is not finite, before it reaches the others."""
        error = None if all(map(math.isfinite, parts.values())) else self._not_finite("loss", step, batches)
        if self.processes.count > 1 and error is None:
            gradients = [p.grad for p in self.trainee.parameters.values() if p.grad is not None]
            if not torch.isfinite(torch.nn.utils.get_total_norm(gradients)):
                error = self._not_finite("gradient", step, batches)
        self.processes.agree(error)
        self.processes.sum_gradients(self.trainee.parameters.values())

    def _loss(self, batch: Batch | None, positions: int, share: float) -> tuple[torch.Tensor, Losses]:
        """Returns this batch's part of the step's loss, and what it is made of.

        positions: all target positions of the step. share: of the run's steps, done so far.
        """
        if batch is None:
            self._gate_mean({}, None)
            return torch.zeros(()), {}
        autocast = torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)
        with autocast, self.trainee.route(self.settings.gate_noise * share, batch.languages) as routing:
            hidden_BTD = self.trainee.hidden(batch.features.to(self.device), batch.decoder_input_ids.to(self.device))
            # padding is dropped here: only real target positions reach the projection and the losses
            sums = projection_loss(
                hidden_BTD[batch.positions],
                self.trainee.whisper.model.proj_out.weight,
                batch.targets.to(self.device),
                self.objective,
                batch.teacher and batch.teacher.to(self.device),
                None if self.data.tail_V is None else self.data.tail_V.to(self.device),
            )
        loss, parts = sums.total / positions, {"ce": sums.cross_entropy / positions}
        if batch.teacher is not None:
            parts["kd"] = sums.divergence / positions
        if self.trainee.gated:
            mean, targets = self._gate_mean(routing.gates, batch)
            gate = self.objective.gate_loss(mean, share)
            loss = loss + self.objective.weighted_gate(gate, targets / positions)
            own = (
                len(batch.targets) / positions
            )  # the mean is the same on all processes: each counts it by its own targets
            parts |= {"gate": own * gate, "gate_mean": own * mean}
        # one transfer to the host for all parts
        return loss, dict(zip(parts, torch.stack([part.detach() for part in parts.values()]).tolist(), strict=True))

    def _gate_mean(self, gates: dict[str, list[torch.Tensor]], batch: Batch | None) -> tuple[torch.Tensor, int]:
        """Returns the mean gate over this batch's positions on all processes, and the number of its targets on all.

        It is differentiable in this process' gates. A process without a batch takes part in the sum.
        """
        if not self.trainee.gated:
            return torch.zeros(()), 0
        if batch is None:
            self.processes.others([0.0, 0.0, 0.0])
            return torch.zeros(()), 0
        masks = batch.encoder_mask.to(self.device), batch.decoder_mask.to(self.device)
        if self.settings.gate_positions == "all":
            masks = torch.ones_like(masks[0]), torch.ones_like(masks[1])
        total, count = gate_sum(gates, *masks)
        targets = len(batch.targets)
        if self.processes.count > 1:
            other_total, other_count, other_targets = self.processes.others([total.item(), int(count), targets])
            # a sum that is not finite ends the run with this step: its own process names the utterances
            total = total + (other_total if math.isfinite(other_total) else 0.0)
            count, targets = count + round(other_count), targets + round(other_targets)
        return total / count, targets

    def _not_finite(self, what: str, step: int, batches: list[Batch]) -> PipelineError:
        names = ", ".join(name for batch in batches for name in batch.ids)
        return PipelineError(
            f"{what} is not finite at step {step + 1}, before the weights were changed; lower learning_rate or look at "
            f"these utterances: {names}"
        )

    def _is_validation(self, step: int) -> bool:
        return step == self.total_steps or step % (self.settings.validate_every or self.steps_per_epoch) == 0

    def _validate(self, position: checkpoint.Position) -> checkpoint.Position:
        self.trainee.model.eval()
        rates = self.validate()
        measured = {f"validation_{name}": rate for name, rate in rates.items()}
        self._log({"step": position.step, "epoch": self._epoch(position.step), **measured})
        if rates["wer"] < position.best_wer:
            position = replace(position, best_step=position.step, best_wer=rates["wer"])
            self.processes.on_main(lambda: self.save_best(position))
        return position

    def _epoch(self, step: int) -> float:
        return round(step / self.steps_per_epoch, 4)

    def _log(self, row: Losses) -> None:
        if self.processes.main:
            files.append_text(self.folder / CURVE, json.dumps(row) + "\n")
            self.track(row)

    def _cut_curve(self, step: int) -> None:
        """Removes the curve's rows after the checkpoint, and a row that a full disk cut short: they are written again."""
        path = self.folder / CURVE
        if path.exists():
            lines = path.read_text(encoding="utf-8").split("\n")[:-1]
            kept = [line for line in lines if json.loads(line)["step"] <= step]
            files.write_text(path, "".join(f"{line}\n" for line in kept))


def _schedule(step: int, total: int, warmup: float) -> float:
    """Returns the share of the learning rate: it rises linearly during warm-up, then falls linearly to 0."""
    rising = round(warmup * total)
    if step < rising:
        return (step + 1) / rising
    return (total - step) / max(1, total - rising)


def _means(rows: list[Losses]) -> Losses:
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
