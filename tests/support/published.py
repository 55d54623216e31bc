"""The published layer computed and stored as its description has it, independent of ours: a reference, and files to read."""

import json
from pathlib import Path

import torch
from torch import nn
from transformers import WhisperForConditionalGeneration

GATE = 64


class Block(nn.Module):
    def __init__(self, width: int, inner: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(nn.functional.gelu(self.fc1(x)))


class PublishedLayer(nn.Module):
    """`(1 - g) * shared(x) + g * expert(x)`, both computed for every token; g = 1 where gate_out(relu(gate_in(x))) >= 0."""

    def __init__(self, width: int, inner: int, languages: list[str]):
        super().__init__()
        self.proj = nn.ModuleDict({name: Block(width, inner) for name in ("shared", *languages)})
        self.gate_in = nn.ModuleDict({name: nn.Linear(width, GATE) for name in languages})
        self.gate_out = nn.ModuleDict({name: nn.Linear(GATE, 1, bias=False) for name in languages})
        self.language = languages[0]
        self.seen: list[torch.Tensor] = []  # g, (B, T), of each call

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.gate_out[self.language](torch.relu(self.gate_in[self.language](x)))
        g = (logits >= 0).to(x.dtype)
        self.seen.append(g.squeeze(-1))
        return (1 - g) * self.proj["shared"](x) + g * self.proj[self.language](x)


def layers(model: WhisperForConditionalGeneration) -> list[tuple[str, nn.Module]]:
    sides = (("encoder", model.model.encoder), ("decoder", model.model.decoder))
    return [(f"{side}.layers.{number}", layer) for side, part in sides for number, layer in enumerate(part.layers)]


@torch.no_grad()
def make_published(
    model: WhisperForConditionalGeneration, languages: list[str], scale: float = 0.3, seed: int = 0
) -> dict[str, PublishedLayer]:
    """Puts published layers into `model`, in place: its own FFNs as the shared ones, and random experts about them."""
    random = torch.Generator().manual_seed(seed)
    made = {}
    for place, layer in layers(model):
        published = PublishedLayer(layer.fc1.in_features, layer.fc1.out_features, languages)
        for name in ("fc1", "fc2"):
            own = getattr(layer, name).state_dict()
            for language, block in published.proj.items():
                getattr(block, name).load_state_dict(own)
                if language != "shared":
                    for parameter in getattr(block, name).parameters():
                        size = parameter.std() if parameter.std() > 0 else 0.02
                        parameter += scale * size * torch.randn(parameter.shape, generator=random)
        for language in languages:
            published.gate_in[language].weight.normal_(std=0.3, generator=random)
            published.gate_in[language].bias.normal_(std=0.3, generator=random)
            published.gate_out[language].weight.normal_(generator=random)
        # Whisper's layer computes fc2(activation(fc1(x)))
        layer.fc1, layer.activation_fn, layer.fc2 = published, nn.Identity(), nn.Identity()
        made[place] = published
    return made


def save_published(
    model: WhisperForConditionalGeneration, languages: list[str], folder: Path, checkpoint: str | None
) -> Path:
    """checkpoint: `pytorch_model.bin`, `model.safetensors`, either's index for two shards, or None for experts alone."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name.replace(".fc1.", ".ffn_clsr.", 1) if ".fc1.proj." in name or ".fc1.gate_" in name else name: tensor
             for name, tensor in model.state_dict().items() if name != "proj_out.weight"}  # fmt: skip
    own = {name: {key for key in state if f".{name}." in key} for name in languages}
    for name in languages:
        torch.save({key: state[key] for key in own[name]}, folder / f"expert.{name}.bin")
    whole = {key: tensor for key, tensor in state.items() if not any(key in keys for keys in own.values())}
    if checkpoint:
        _save_checkpoint(whole, folder, checkpoint)
    facts = {"model_type": "distilwhisper", "clsr_langs": languages, "skip_gate_prob": 0.2, "clsr_gate_dim": GATE}
    (folder / "config.json").write_text(json.dumps({**model.config.to_dict(), **facts}))
    return folder


def _save_checkpoint(whole: dict[str, torch.Tensor], folder: Path, checkpoint: str) -> None:
    from safetensors.torch import save_file

    def save(tensors: dict[str, torch.Tensor], name: str) -> None:
        if name.endswith(".bin"):
            torch.save(tensors, folder / name)
        else:
            save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / name)

    name = checkpoint.removesuffix(".index.json")
    if name == checkpoint:
        save(whole, name)
        return
    stem, _, kind = name.rpartition(".")
    keys = sorted(whole)
    shards = {f"{stem}-0000{n + 1}-of-00002.{kind}": keys[n::2] for n in range(2)}
    for shard, names in shards.items():
        save({key: whole[key] for key in names}, shard)
    weight_map = {key: shard for shard, names in shards.items() for key in names}
    (folder / checkpoint).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
