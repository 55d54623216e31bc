"""A linear layer whose trained part is a change of low rank of a frozen weight (LoRA, Hu et al. 2021), and a bias."""

import math

import torch
from torch import nn
from torch.nn import functional as F

# Shapes: O outputs and I inputs, as nn.Linear has them


class LowRankLinear(nn.Module):
    """Computes `x (W + left right)' + bias`. W is the weight of `frozen` itself, not a copy.

    left (O, rank) begins as 0 and right (rank, I) as LoRA's A, so that the layer begins as `frozen`. The product is not
    scaled: it is that of LoRA with lora_alpha = lora_rank. The bias begins as a copy. dropout: on the input of the factors.
    """

    def __init__(self, frozen: nn.Linear, rank: int, dropout: float):
        super().__init__()
        # in a tuple it is no part of this module: W is not saved, counted or moved twice
        self._frozen = (frozen,)
        self.dropout = nn.Dropout(dropout)
        outputs, inputs = frozen.weight.shape
        left, right = frozen.weight.detach().new_zeros(outputs, rank), frozen.weight.detach().new_empty(rank, inputs)
        nn.init.kaiming_uniform_(right, a=math.sqrt(5))
        # the parameters have the names that a stored expert of this rank has: fc1.weight.left, fc1.weight.right, fc1.bias
        self.weight = nn.ParameterDict({"left": nn.Parameter(left), "right": nn.Parameter(right)})
        self.bias = nn.Parameter(frozen.bias.detach().clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Takes (..., I), returns (..., O)."""
        change = F.linear(F.linear(self.dropout(x), self.weight["right"]), self.weight["left"])
        return F.linear(x, self._frozen[0].weight, self.bias) + change
