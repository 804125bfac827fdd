"""Words and what else a text-to-picture diffusion is told: from a call, or from the captions of a batch, to tensors.

conditions, null, hidden   what systems.diffusion.Diffusion asks for: of a batch or a call, of no words, of words now and then
ids                        the sizes that Stable Diffusion XL is told (Podell et al. 2023, section 2.2)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError
from ..interfaces import Batch, Draw
from .reading import Readers

Told = dict[str, Tensor]
AESTHETIC = (6.0, 2.5)  # what XL's refiner is told of prompt and negative prompt, where nothing is said


class Words(Readers):
    """What systems that are told words share: stands before a Diffusion, whose `networks`, `config` and shapes it looks at."""

    def conditions(self, given: Any) -> Told:
        """`text` and, where the network asks for them, `pooled`, `ids`, `beside`: all (n, ...).

        given: a batch of training, or a call of `sample`.
        """
        told = self.said(self.texts(given), given)
        if self.config.network.added_width:
            told["ids"] = self.ids(given, len(told["text"]))
        if self.config.network.in_channels > self.config.network.out_channels:
            told["beside"] = self.beside(given)
        return told

    def null(self, conditions: Mapping[str, Tensor], given: Any) -> Told:
        """The same with the negative prompt's words, or none."""
        told = {**conditions, **self.said(self.negatives(given), given)}
        if self.config.network.added_width:
            told["ids"] = self.ids(given, len(told["text"]), negative=True)
        return told

    def hidden(self, conditions: Told, given: Batch, draw: Draw) -> Told:
        """Conditions of a training step; now and then without the words, so that guidance has its other branch."""
        if self.config.text_dropout == 0:
            return conditions
        hide = draw.uniform("text_dropout", (len(conditions["text"]),)) < self.config.text_dropout
        null = self.null(conditions, given)
        return {name: torch.where(hide.view(-1, *[1] * (value.dim() - 1)), null[name], value)
                for name, value in conditions.items()}  # fmt: skip

    def beside(self, given: Any) -> Tensor:
        """What is laid beside what is denoised (n, c, y, x), where the network has more channels in than out."""
        raise NotImplementedError

    def has_depth(self, request: Any) -> bool:
        """Whether a call says how near what is; of systems that are told it."""
        return "depth" in request.inputs

    def ids(self, given: Any, n: int, negative: bool = False) -> Float[Tensor, "n k"]:
        """(original height, width, top, left, height, width), or with a score in place of the last two (the refiner's)."""
        inputs: Mapping[str, Any] = given.inputs if not isinstance(given, Batch) else {}
        size = given.size if not isinstance(given, Batch) else tuple(given.image.shape[2:])
        numbers = [*inputs.get("original_size", size), *inputs.get("crop", (0, 0))]
        if self.id_count == 6:
            numbers += inputs.get("target_size", size)
        else:
            numbers.append(AESTHETIC[1] if negative else inputs.get("aesthetic_score", AESTHETIC[0]))
        place = self.networks["network"].conv_in.weight.device
        return torch.tensor([numbers], dtype=torch.float32, device=place).expand(n, -1)

    @property
    def id_count(self) -> int:
        network = self.config.network
        pooled = next((e.config.pooled_width for e in reversed(self.encoders.values()) if e.config.pooled_width), 0)
        return (network.added_width - pooled) // network.size_width

    @property
    def tells_pooled(self) -> bool:  # type: ignore[override]
        """Whether the network is told the pooled text."""
        return bool(self.config.network.added_width)

    # ------------------------------------------------------------------------------------------------- what can be asked

    def check_guidance(self, request: Any) -> None:
        """There is always something to guide by: the words, against none."""

    def check_words(self, request: Any) -> None:
        if self.config.network.in_channels == self.config.network.out_channels + 1 and not self.has_depth(request):
            raise InputError(
                "this model is told a depth; give it: depth=PICTURE, near is bright (hwaga control PICTURE --kind depth makes one)"
            )
        super().check_words(request)
