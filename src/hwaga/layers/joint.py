"""Two kinds of tokens in one attention: what joint transformers are made of (Esser et al. 2024, section 4 and figure 2).

A picture's tokens and a text's have weights of their own; queries, keys and values of both stand in one row, and every token
looks at all of them:

    q = [x W_q, c W_add_q], k and v alike; softmax(q k^T / sqrt(d)) v, cut apart again      `JointAttention`
    norm(x) (1 + scale) + shift, shift and scale a linear function of what the block is told  `Told`
    gelu(x W_1) W_2, GELU in its tanh form                                                   `FeedForward`

Stable Diffusion 3, Flux and Qwen-Image are built of the same three. Parameters have the names of their public folders
(`attn.to_q`, `attn.add_q_proj`, `norm1.linear`, `ff.net.0.proj`).
"""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from .positions import rotated
from .transformer import RMSNorm


class JointAttention(nn.Module):
    """Attention over picture tokens x (n, l, d) and, where there is one, over a text's c (n, m, d) as well.

    qk_norm: queries and keys of each kind are brought to unit mean square, head by head (Esser et al. 2024, section 5.3.2).
    text: "none" (x alone), "heard" (c is looked at, and nothing is said of it), "both".
    """

    def __init__(self, width: int, heads: int, *, qk_norm: bool, eps: float, text: str = "both") -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"heads={heads} does not divide width={width}")
        self.heads, self.text = heads, text
        self.passes = False  # see layers/attention.py: passing
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(width, width)])  # a list, as public files name it `to_out.0`
        norm = (lambda: RMSNorm(width // heads, eps=eps)) if qk_norm else (lambda: None)
        self.norm_q, self.norm_k = norm(), norm()
        if text != "none":
            self.add_q_proj, self.add_k_proj, self.add_v_proj = (nn.Linear(width, width) for _ in range(3))
            self.norm_added_q, self.norm_added_k = norm(), norm()
        self.to_add_out = nn.Linear(width, width) if text == "both" else None

    def _split(self, x: Tensor, norm: nn.Module | None = None) -> Float[Tensor, "n heads l d"]:
        x = rearrange(x, "n l (heads d) -> n heads l d", heads=self.heads)
        return x if norm is None else norm(x)

    def forward(
        self, x: Float[Tensor, "n l d"], text: Float[Tensor, "n m d"] | None = None, rotation: Tensor | None = None
    ) -> tuple[Float[Tensor, "n l d"], Float[Tensor, "n m d"] | None]:
        """What each kind of token hears. rotation: of [x, text], or of x alone (layers/positions.py)."""
        q, k, v = (
            self._split(self.to_q(x), self.norm_q),
            self._split(self.to_k(x), self.norm_k),
            self._split(self.to_v(x)),
        )
        if text is not None:
            k = torch.cat([k, self._split(self.add_k_proj(text), self.norm_added_k)], dim=2)
            v = torch.cat([v, self._split(self.add_v_proj(text))], dim=2)
            if self.to_add_out is not None:  # else no one reads what the text would hear
                q = torch.cat([q, self._split(self.add_q_proj(text), self.norm_added_q)], dim=2)
        if rotation is not None:
            q, k = rotated(q, rotation[:, : q.shape[2]]), rotated(k, rotation)
        mixed = v[:, :, : q.shape[2]] if self.passes else scaled_dot_product_attention(q, k, v)
        heard = rearrange(mixed, "n heads l d -> n l (heads d)")
        if self.to_add_out is None or text is None:
            return self.to_out[0](heard), None
        return self.to_out[0](heard[:, : x.shape[1]]), self.to_add_out(heard[:, x.shape[1] :])


class Told(nn.Module):
    """`count` vectors (n, 1, d) each, a linear function of what blocks are told (n, d): shifts, scales and gates."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.count = count
        self.linear = nn.Linear(width, count * width)

    def forward(self, told: Float[Tensor, "n d"]) -> tuple[Tensor, ...]:
        return self.linear(told)[:, None].chunk(self.count, dim=-1)


class _Rise(nn.Module):
    """The first half of a feed-forward layer: a linear layer and a GELU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return gelu(self.proj(x), approximate="tanh")


class FeedForward(nn.Module):
    """To four times the width and back."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.ModuleList([_Rise(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width)])

    def forward(self, x: Float[Tensor, "n l d"]) -> Float[Tensor, "n l d"]:
        return self.net[2](self.net[0](x))
