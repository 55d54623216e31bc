"""Plans what of a model's folder goes to the hub, and sends it in one commit."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalTokenNotFoundError, RepositoryNotFoundError

from cache.errors import PipelineError
from cache.files import read_json
from stages.shared.card.measured import Measured
from stages.shared.card.stored import card_of
from stages.shared.card.text import is_hub_id, with_measured
from stages.shared.layout import CARD, CHECKPOINT, OF_TRAINING
from stages.shared.student.adapters import ADAPTER
from stages.shared.student.adapters import METADATA as LORA
from stages.shared.student.bundles import METADATA as BUNDLE
from stages.shared.student.experts import METADATA as EXPERTS
from stages.shared.student.loading import locate

# One of these is in every folder that is trained or exported.
MODELS = (EXPERTS, ADAPTER, BUNDLE, "config.json", "ggml-model.bin", "decoder.onnx")
BASE_IN = (EXPERTS, LORA, BUNDLE)  # the files that name a base


@dataclass(frozen=True)
class Plan:
    """What would be sent. files: names in the folder, with "/". kept: what the repository has and the folder has not."""

    folder: Path
    repository: str
    new: bool
    private: bool
    files: dict[str, int]  # name -> bytes; without the card
    left: list[str]
    kept: list[str]
    card: str
    warnings: list[str]

    @property
    def bytes(self) -> int:
        return sum(self.files.values()) + len(self.card.encode())


def plan(
    folder: Path, repository: str, measured: Sequence[Measured], licence: str | None, private: bool, api: HfApi
) -> Plan:
    """Reads the folder and asks the hub what it has. Nothing is sent.

    measured: the rates that go into the card. licence: None leaves the card's own. private: for a new repository.
    Raises PipelineError where the folder holds no finished model, or where the hub cannot be asked.
    """
    _check_model(folder)
    names = sorted(_names(folder))
    sent = {name: (folder / name).stat().st_size for name in names if _is_of_model(name) and name != CARD}
    there = _there(api, repository)
    text = _card(folder, measured, licence, repository)
    return Plan(
        folder=folder,
        repository=repository,
        new=there is None,
        private=private,
        files=sent,
        left=[name for name in names if not _is_of_model(name)],
        kept=sorted(set(there or ()) - {*sent, CARD, ".gitattributes"}),
        card=text,
        warnings=list(_warnings(folder, text, measured)),
    )


def _check_model(folder: Path) -> None:
    if not folder.is_dir():
        raise PipelineError(f"{folder}: no such folder, expected a model that was trained or exported here")
    if not any((folder / name).exists() for name in MODELS):
        raise PipelineError(f"{folder}: no model in it, expected one of {', '.join(MODELS)}")
    if (folder / CHECKPOINT).exists():
        raise PipelineError(
            f"{folder}: its training has not ended ({CHECKPOINT} is there): give the same train-student command again"
        )


def _names(folder: Path) -> Iterator[str]:
    for place, below, names in os.walk(folder):
        below[:] = sorted(name for name in below if not name.startswith("."))
        yield from ((Path(place) / name).relative_to(folder).as_posix() for name in names)


def _is_of_model(name: str) -> bool:
    last = name.rpartition("/")[2]
    return last not in OF_TRAINING and not last.startswith(".")


def _card(folder: Path, measured: Sequence[Measured], licence: str | None, repository: str) -> str:
    path = folder / CARD
    text = path.read_text(encoding="utf-8") if path.exists() else card_of(locate(str(folder)), folder.name)
    return with_measured(text.replace('"here"', f'"{repository}"'), measured, licence)


def _warnings(folder: Path, text: str, measured: Sequence[Measured]) -> Iterator[str]:
    if not any(one.own for one in measured):
        yield "no error rates: run `pipeline evaluate` first, and the card has them"
    if "\nlicense:" not in text.partition("\n---\n")[0]:
        yield "no licence: give --licence, or `licence` in the parameters; without one nobody may use it"
    base = next((read_json(folder / name).get("base") for name in BASE_IN if (folder / name).exists()), None)
    if base and not is_hub_id(base):
        yield f"its base is {base}, a folder of this machine: others need it, too; `pipeline export --to whisper` has all"


def _there(api: HfApi, repository: str) -> list[str] | None:
    """Returns the names of the repository's files, None where there is no such repository."""
    with _explained(repository):
        try:
            return list(api.list_repo_files(repository))
        except RepositoryNotFoundError:
            return None


def push(planned: Plan, message: str, api: HfApi) -> str:
    """Creates the repository if it is new, and sends the files in one commit. Returns the commit's address.

    Raises PipelineError where the hub refuses or cannot be reached; then no file of the repository has changed.
    """
    operations = [
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=planned.folder / name) for name in planned.files
    ]
    operations.append(CommitOperationAdd(path_in_repo=CARD, path_or_fileobj=planned.card.encode()))
    with _explained(planned.repository):
        if planned.new:
            api.create_repo(planned.repository, private=planned.private or None, exist_ok=True)
        return str(api.create_commit(planned.repository, operations, commit_message=message).commit_url)


@contextmanager
def _explained(repository: str) -> Iterator[None]:
    """Turns the errors of the hub's client into one line."""
    try:
        yield
    except (PipelineError, RepositoryNotFoundError):
        raise
    except LocalTokenNotFoundError:
        raise PipelineError(f"{repository}: {_how_to_log_in(repository)}") from None
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        reason = error.server_message or next(iter(str(error).splitlines()), "no message")
        what = f"; {_how_to_log_in(repository)}" if status in (401, 403) else ""
        raise PipelineError(f"{repository}: the hub refuses it (status {status}: {reason}){what}") from None
    except ValueError as error:  # what the client says of a card that the hub does not take
        raise PipelineError(f"{repository}: the hub refuses the card ({' '.join(str(error).split())})") from None
    except (OSError, HTTPError) as error:
        raise PipelineError(f"{repository}: the hub cannot be reached ({type(error).__name__}: {error})") from None


def _how_to_log_in(repository: str) -> str:
    owner = repository.partition("/")[0]
    return f"log in with `hf auth login`, or set HF_TOKEN to a token that may write to {owner}"
