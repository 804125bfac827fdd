"""Words as Stable Diffusion 3 is told them: by two CLIPs and a T5 (Esser et al. 2024, section 4 and figure 2).

    text     [CLIP-L, CLIP-G, zeros]      (n, l, d)    both side by side, filled up to the width of T5's
             [T5]                         (n, m, d)    below them; zeros where there is none, as published
    pooled   [CLIP-L, CLIP-G]             (n, p)

In training each encoder may be silent now and then, by itself, so that a model paints without any of them (section 5.3.3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..interfaces import Batch, Draw
from .text_encoders import ENCODERS, Encoded
from .words import Told, Words

CLIPS, T5 = ENCODERS[:2], ENCODERS[2]


class ThreeEncoders(Words):
    """Words that come from up to three encoders."""

    tells_pooled = True  # type: ignore[assignment]

    def needed_encoders(self) -> Sequence[str]:
        """Those that the model has; where their pooled texts are not all that the network takes, both CLIPs."""
        had = {name: config for name in ENCODERS if (config := getattr(self.config, name)) is not None}
        whole = sum(config.pooled_width for config in had.values()) == self.config.network.pooled_width
        return list(had) if whole else [*CLIPS, *(name for name in had if name not in CLIPS)]

    def joined(self, said: Mapping[str, Encoded]) -> tuple[Tensor, Tensor | None]:
        """See the top of this file."""
        clips, width = [one for name, one in said.items() if name in CLIPS], self.config.network.text_width
        states = torch.cat([one.states for one in clips], dim=-1)
        states = pad(states, (0, width - states.shape[-1]))
        below = said[T5].states if T5 in said else states.new_zeros(len(states), self.config.t5_length, width)
        pooled = torch.cat([one.pooled for one in clips if one.pooled is not None], dim=-1)
        return torch.cat([states, below.to(states)], dim=1), pooled

    def hidden(self, conditions: Told, given: Batch, draw: Draw) -> Told:
        """Conditions of a training step: each encoder silent now and then, and now and then no words at all."""
        return super().hidden(self.unheard(conditions, draw), given, draw)

    def unheard(self, conditions: Told, draw: Draw) -> Told:
        """Zeros in the place of encoders that are silent, for each picture and encoder by itself."""
        share = self.config.encoder_dropout
        if share == 0:
            return conditions
        text, pooled = conditions["text"].clone(), conditions["pooled"].clone()
        column = vector = 0
        for name, config in self.config.encoders.items():
            keep = (draw.uniform(f"dropout_{name}", (len(text),)) >= share).to(text)
            rows, column = (slice(-config.length, None), 0) if name == T5 else (slice(0, config.length), column)
            text[:, rows, column : column + config.width] *= keep[:, None, None]
            pooled[:, vector : vector + config.pooled_width] *= keep[:, None]
            column, vector = column + config.width, vector + config.pooled_width
        return {**conditions, "text": text, "pooled": pooled}
