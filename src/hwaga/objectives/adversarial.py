"""The losses of two networks that play against each other, and the penalties that keep the game stable.

D gives a logit: how real does a picture look? With r = D(real), f = D(fake), softplus(t) = log(1 + e^t):

    kind             discriminator minimises             generator minimises     source
    minimax          softplus(-r) + softplus(f)          -softplus(f)            Goodfellow et al. 2014, eq. 1
    non-saturating   softplus(-r) + softplus(f)          softplus(-f)            the same, section 3
    hinge            max(0, 1 - r) + max(0, 1 + f)       -f                      Lim and Ye 2017; Miyato et al. 2018
    wgan             f - r                               -f                      Arjovsky et al. 2017, eq. 2 and 3
    relativistic     softplus(-(r - f))                  softplus(-(f - r))      Jolicoeur-Martineau 2018; R3GAN, eq. 2

-log(1 - sigmoid(f)) is softplus(f) and -log sigmoid(r) is softplus(-r), which is how these are the papers' logarithms.

    r1, r2 penalty   E || grad_x D(x) ||^2 at real and at generated pictures     Mescheder et al. 2018, eq. 9; R3GAN, eq. 3
    gradient penalty E (|| grad_x D(x) || - 1)^2 between the two                 Gulrajani et al. 2017, eq. 3
    adaptive weight  || grad_L reconstruction || / || grad_L adversarial ||      Esser et al. 2021, eq. 7
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import relu, softplus

Kind = Literal["minimax", "non-saturating", "hinge", "wgan", "relativistic"]
KINDS: tuple[Kind, ...] = get_args(Kind)


def generator_loss(kind: Kind, fake_logits: Tensor, real_logits: Tensor | None = None) -> Float[Tensor, ""]:
    """What the generator minimises: the mean over logits of any shape, one a picture or one a patch.

    `real_logits` of the same shape are what `relativistic` compares each fake with, and are left out of account
    otherwise. ValueError for an unknown kind, or where they are missing.
    """
    if kind == "minimax":
        return -softplus(fake_logits).mean()
    if kind == "non-saturating":
        return softplus(-fake_logits).mean()
    if kind in ("hinge", "wgan"):
        return -fake_logits.mean()
    if kind != "relativistic":
        raise ValueError(f"kind={kind!r}: one of {', '.join(KINDS)} is needed")
    if real_logits is None:
        raise ValueError("the relativistic loss compares each fake with a real picture: real_logits are needed")
    return softplus(real_logits - fake_logits).mean()


def discriminator_loss(kind: Kind, real_logits: Tensor, fake_logits: Tensor) -> Float[Tensor, ""]:
    """What the discriminator minimises: the mean over logits of any shape (the same for both where `relativistic`)."""
    if kind in ("minimax", "non-saturating"):
        return softplus(-real_logits).mean() + softplus(fake_logits).mean()
    if kind == "hinge":
        return relu(1 - real_logits).mean() + relu(1 + fake_logits).mean()
    if kind == "wgan":
        return fake_logits.mean() - real_logits.mean()
    if kind != "relativistic":
        raise ValueError(f"kind={kind!r}: one of {', '.join(KINDS)} is needed")
    return softplus(fake_logits - real_logits).mean()


# ------------------------------------------------------------------------------------------------------------ penalties


def squared_gradient(logits: Tensor, pictures: Tensor) -> Float[Tensor, " n"]:
    """|| grad_x D(x) ||^2 of each picture (n,), differentiable by the discriminator's weights.

    `pictures` (n, ...) are what `logits` (n, ...) came from and must require gradients. A discriminator that looks at
    each picture alone gives each its own gradient in one backward pass over the sum.
    """
    (gradient,) = torch.autograd.grad(full(logits).sum(), pictures, create_graph=True)
    return full(gradient).square().flatten(1).sum(1)


def full(value: Tensor) -> Tensor:
    """float32 of half-precision numbers; others as they are."""
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


def r1_penalty(logits: Tensor, pictures: Tensor) -> Float[Tensor, ""]:
    """E || grad_x D(x) ||^2 at real pictures; weigh it by gamma / 2 (Mescheder et al. 2018, eq. 9)."""
    return squared_gradient(logits, pictures).mean()


def r2_penalty(logits: Tensor, pictures: Tensor) -> Float[Tensor, ""]:
    """The same at generated pictures, cut off from the generator (R3GAN, eq. 3)."""
    return squared_gradient(logits, pictures).mean()


r2 = r2_penalty


def gradient_penalty(
    discriminator: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, mix: Float[Tensor, " n"]
) -> Float[Tensor, ""]:
    """E (|| grad_x D(x) || - 1)^2 at x = mix real + (1 - mix) fake, `mix` uniform in [0, 1); weigh it by lambda = 10.

    Source: Gulrajani et al. 2017, eq. 3 and algorithm 1 (WGAN-GP).
    """
    share = mix.reshape(-1, *[1] * (real.dim() - 1))
    between = (share * real + (1 - share) * fake).detach().requires_grad_(True)
    squared = squared_gradient(discriminator(between), between)
    # the root has no finite slope at 0, where a discriminator that is constant stands
    return ((squared + 1e-12).sqrt() - 1).square().mean()


def adaptive_weight(
    reconstruction_loss: Tensor, adversarial_loss: Tensor, last_layer: Tensor, delta: float = 1e-6, most: float = 1e4
) -> Float[Tensor, ""]:
    """|| grad_L reconstruction || / (|| grad_L adversarial || + delta), L the decoder's last layer; a constant, at most
    `most`: what the adversarial loss is multiplied by, so that neither drowns the other.

    The norms are those of the batch at hand: a stage that uses it works off the whole batch (`batch_statistics`) if its
    result is not to depend on the number of processes. Source: Esser et al. 2021, eq. 7.
    """
    (wanted,) = torch.autograd.grad(reconstruction_loss, last_layer, retain_graph=True)
    (against,) = torch.autograd.grad(adversarial_loss, last_layer, retain_graph=True)
    return (wanted.float().norm() / (against.float().norm() + delta)).clamp(0, most).detach()
