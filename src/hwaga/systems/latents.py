"""Pictures as a diffusion sees them in a small space: what every latent system shares (Rombach et al. 2022, section 3.1).

The autoencoder is a component that was trained before and stays as it is. Of each training picture the posterior's mean and
log variance are computed once and kept (`interfaces.Precomputed`, `data/beside.py`); a step draws its latents from them.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError
from ..interfaces import Batch, Draw, Noise, Precomputed
from ..networks.autoencoder import AutoencoderKL, AutoencoderKLConfig, Gaussian

MOMENTS = "latent_moments"


def moments(autoencoder: AutoencoderKL, image: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n m y x"]:
    """Mean and, where the encoder gives one, log variance of z given pictures in [-1, 1], one above the other, float32."""
    weight = autoencoder.last_layer
    q = autoencoder.posterior(image.to(device=weight.device, dtype=weight.dtype))
    return (q.mean if q.log_variance is None else torch.cat([q.mean, q.log_variance], dim=1)).float()


def precomputed(autoencoder: AutoencoderKL, size: tuple[int, int]) -> Precomputed:
    """The moments of pictures of (height, width), to be kept beside them."""
    channels, *place = autoencoder.config.latent_shape(size)
    shape = (channels * (2 if autoencoder.config.double_z else 1), *place)
    return Precomputed(lambda: fingerprint(autoencoder), shape, lambda image: moments(autoencoder, image))


def fingerprint(network: Any) -> str:
    """A hash of a network's config and weights; the scale of latents, which moments do not have yet, is no part of it."""
    digest = hashlib.sha256(json.dumps(network.config.model_dump(mode="json"), sort_keys=True).encode())
    for name, value in sorted(network.state_dict().items()):
        if name not in getattr(network, "precise", ()):
            digest.update(name.encode() + value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@torch.no_grad()
def of_batch(autoencoder: AutoencoderKL, batch: Batch, draw: Draw, sampled: bool) -> Float[Tensor, "n c y x"]:
    """Latents of training pictures, float32, scaled as a diffusion sees them: samples of the posterior, or its means."""
    held = batch.extra.get(MOMENTS)
    held = moments(autoencoder, batch.image) if held is None else held
    q = Gaussian(*held.chunk(2, dim=1)) if autoencoder.config.double_z else Gaussian(held)
    z = q.sample(draw.normal("posterior_noise", tuple(q.mean.shape))) if sampled else q.mean
    return autoencoder.scaled(z)


def drawn(
    autoencoder: AutoencoderKL, picture: Float[Tensor, "1 3 h w"], noise: Noise, shape: tuple[int, ...]
) -> Float[Tensor, "n c y x"]:  # fmt: skip
    """n latents (`shape`) of one picture in [-1, 1], each sampled of its posterior by the picture's own `posterior_noise`."""
    q = autoencoder.posterior(picture.to(autoencoder.last_layer.dtype))
    return autoencoder.scaled(q.sample(noise("posterior_noise", shape)))


def take(system: Any, network: Any, source: str) -> None:
    """Puts another autoencoder in place of a latent system's, which may have another config where its latents have the same
    channels; InputError where they have not. The trained size in pixels follows."""
    before = system.config.autoencoder
    if before is None:
        raise InputError(f"components['autoencoder']={source}: this model denoises pixels and has no use for one")
    given = getattr(network.config, "latent_channels", 0)
    if not isinstance(network.config, AutoencoderKLConfig) or given != before.latent_channels:
        raise InputError(
            f"components['autoencoder']={source}: its latents have {given} channels, this model denoises "
            f"{before.latent_channels} of an AutoencoderKL"
        )
    size = tuple(side * network.config.factor // before.factor for side in system.about.size)
    system.about = system.about.model_copy(update={"size": size})
    system.config = system.config.model_copy(update={"autoencoder": network.config})
    system.networks["autoencoder"] = network


def check_data(config: AutoencoderKLConfig, patch: int, size: tuple[int, int]) -> None:
    """InputError where pictures of (height, width) have no latents that the patch divides."""
    factor = config.factor * patch
    if any(side % factor for side in size):
        raise InputError(
            f"data.size={size}: multiples of {factor} are needed, as the autoencoder makes {config.factor} pixels one latent "
            f"and the network {patch} latents one token"
        )


def check_decodable(config: AutoencoderKLConfig, latents: Tensor, title: str) -> None:
    """InputError for latents that this autoencoder cannot decode."""
    if not latents.is_floating_point() or latents.dim() != 4 or latents.shape[1] != config.latent_channels:
        raise InputError(
            f"latents={str(latents.dtype).split('.')[-1]} of shape {tuple(latents.shape)}: {title} decodes floating numbers of "
            f"shape (n, {config.latent_channels}, y, x)"
        )
