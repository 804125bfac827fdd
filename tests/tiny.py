"""Tiny systems that tests share: small enough to be made in milliseconds, complete in every option."""

from __future__ import annotations

from dataclasses import replace

import torch

from hwaga.conditioning import bpe
from hwaga.conditioning.text_encoders import TextEncoderConfig
from hwaga.interfaces import Batch
from hwaga.layers.initialise import build_on
from hwaga.networks.clip_text import ClipTextConfig
from hwaga.networks.t5 import T5Config
from hwaga.systems import find

SMALL = {"channels": (8, 16), "groups": 4, "patch": 2}
CLASSES = ("circle", "square", "star")


def ddpm(seed=0, **model):
    """A DDPM of some 100,000 parameters at 16 x 16, conditioned on three labels unless told otherwise."""
    network = {"channels": (16, 32), "attention": (False, True), "groups": 8, "blocks": 1, "patch": 2}
    config = {"labels": True, "network": network, "process": {"timesteps": 50, "schedule": "cosine"}, **model}
    labelled = {"classes": CLASSES, "label_counts": (1, 2, 5)} if config["labels"] else {}
    return find("ddpm").create(config, size=(16, 16), seed=seed, **labelled)


def public_ddpm(seed=0, **network):
    """One in the public layout, without labels."""
    full = {"channels": (16, 32), "attention": (False, True), "groups": 8, "blocks": 1, **network}
    return find("ddpm").create({"network": full, "process": {"timesteps": 50}}, size=(16, 16), seed=seed)


def gan(seed=0, kind="residual", **model):
    """A GAN at 16 x 16, conditioned on three labels unless told otherwise, with all penalties and changes it can have."""
    shape = {"channels": (32, 16), "kind": kind}
    if kind == "residual":
        shape |= {"blocks": (1, 1), "patch": 2}
    penalties = {"r1": 1.0, "r2": 1.0} if kind == "residual" else {}
    parts = {"generator": {**shape, "latent": 8}, "discriminator": shape}
    config = {"labels": True, **parts, "augmentation": ("color", "translation", "cutout"), **penalties, **model}
    labelled = {"classes": CLASSES, "label_counts": (1, 2, 5)} if config["labels"] else {}
    return find("gan").create(config, size=(16, 16), seed=seed, **labelled)


def vqgan(seed=0, classes=CLASSES, **model):
    """A VQGAN of 16 x 16 pictures and 4 x 4 codes, its prior conditioned on three labels unless told otherwise."""
    autoencoder = {
        "channels": [8, 16, 16], "attention": [False, False, True], "blocks": 1, "groups": 4, "latent_channels": 8,
        "quantizer": {"codes": 32, "width": 4, "update": "average", "restart": 0.05, "decay": 0.9},
    }  # fmt: skip
    config = {
        "labels": True, "autoencoder": autoencoder, "discriminator": {"width": 8, "layers": 1, "norm": "group", "groups": 4},
        "prior": {"width": 32, "heads": 2, "depth": 2}, **model,
    }  # fmt: skip
    labelled = {"classes": classes, "label_counts": [1] * len(classes)} if config["labels"] else {}
    return find("vqgan").create(config, size=(16, 16), seed=seed, **labelled)


def vae(seed=0, network=None, **model):
    """A VAE with a vector of 8 numbers at 16 x 16, conditioned on three labels unless told otherwise."""
    config = {"labels": True, **model, "network": {**SMALL, "latent_channels": 8, "latents": 8, **(network or {})}}
    labelled = {"classes": CLASSES, "label_counts": (1, 2, 5)} if config["labels"] else {}
    return find("vae").create(config, size=(16, 16), seed=seed, **labelled)


def vae_kl(seed=0, network=None, **model):
    """An AutoencoderKL in the public layout, twice down, without adversary unless told otherwise."""
    full = {"kind": "map", "channels": (8, 16), "blocks": 1, "groups": 4, **(network or {})}
    likelihood = {"kind": "laplace", "learned": True, "deviation": 0.5}
    config = {"beta": 1e-6, "scaling": "whole", "likelihood": likelihood, **model, "network": full}
    return find("vae").create(config, size=(16, 16), seed=seed)


def batch(n=8, size=(16, 16), seed=0, labels=True):
    g = torch.Generator().manual_seed(seed)
    image = torch.rand((n, 3, *size), generator=g) * 2 - 1
    return Batch(image, torch.arange(n), torch.arange(n) % len(CLASSES) if labels else None)


class Pictures:
    """n pictures of three kinds, as training asks for them."""

    def __init__(self, n=8, labels=True):
        self.every = batch(n, labels=labels)

    def __len__(self):
        return len(self.every)

    def batch(self, indices, epochs=None):
        at = torch.as_tensor(indices)
        return Batch(self.every.image[at], at, None if self.every.label is None else self.every.label[at])


class Draw:
    """All draws from one generator: what an objective needs where no training loop is."""

    def __init__(self, seed=0, step=0):
        self.g = torch.Generator().manual_seed(seed)
        self.step = step

    def normal(self, name, shape):
        return torch.randn(shape, generator=self.g)

    def uniform(self, name, shape):
        return torch.rand(shape, generator=self.g)

    def integers(self, name, high, shape):
        return torch.randint(high, shape, generator=self.g)


def fill_zeros(network, seed=0):
    """Small values in place of zeros: gates that begin at 0 would hide a dead branch."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in network.parameters():
            if not p.any():
                p.normal_(std=0.05, generator=g)


def stylegan(seed=0, classes=CLASSES, **model):
    """A StyleGAN2 at 16 x 16, conditioned on three labels unless told otherwise."""
    generator = {
        "channels": (16, 16, 8),
        "z_dim": 8,
        "w_dim": 8,
        "mapping": {"layers": 2},
        **model.pop("generator", {}),
    }
    config = {"labels": bool(classes), "generator": generator, **model}
    labelled = {"classes": classes, "label_counts": (1, 2, 5)} if classes else {}
    return find("stylegan").create(config, size=(16, 16), seed=seed, **labelled)


def dit(seed=0, network=None, **model):
    """A DiT of 16 x 16 pixels in 4 x 4 patches, conditioned on three labels unless told otherwise."""
    shape = {"width": 32, "depth": 2, "heads": 2, "patch": 4, **(network or {})}
    config = {"labels": True, "process": {"timesteps": 50, "schedule": "cosine"}, **model, "network": shape}
    labelled = {"classes": CLASSES, "label_counts": (1, 2, 5)} if config["labels"] else {}
    return find("dit").create(config, size=(16, 16), seed=seed, **labelled)


def latent_dit(seed=0, network=None, **model):
    """A DiT in the latents of `vae_kl`: 8 x 8 places of 4 numbers, 2 x 2 of them a token."""
    shape = {"width": 32, "depth": 2, "heads": 2, "patch": 2, **(network or {})}
    process = {"timesteps": 50, "variance": "learned-range"}
    config = {"labels": True, "process": process, "sampling": {"clip": None}, **model, "network": shape}
    parts = {"autoencoder": vae_kl().autoencoder.requires_grad_(False)}
    return find("dit").create(
        config, size=(16, 16), seed=seed, classes=CLASSES, label_counts=(1, 2, 5), components=parts
    )


def text_encoder(seed=0, **model):
    """A CLIP text transformer of 16 numbers a token, reading letters, at most 24 tokens."""
    config = TextEncoderConfig(
        model=ClipTextConfig(
            **{"width": 16, "layers": 2, "heads": 2, "hidden": 32, "positions": 24, "vocabulary": len(bpe.vocabulary(())),
               "end": bpe.vocabulary(())[bpe.END], **model}
        ),
        length=24,
    )  # fmt: skip
    encoder = build_on(config)
    encoder.initialise(torch.Generator().manual_seed(seed))
    encoder.files = bpe.files((), 24)
    return encoder.eval().requires_grad_(False)


WORDED = {"channels": [8, 16], "attention": [True, False], "depth": [1, 1], "heads": [2, 2], "blocks": 1, "groups": 4}


def stable_diffusion(seed=0, network=None, **model):
    """A Stable Diffusion in the latents of `vae_kl`: 8 x 8 places of 4 numbers, told words by `text_encoder`."""
    parts = {"autoencoder": vae_kl().autoencoder.requires_grad_(False), "text_encoder": text_encoder()}
    config = {"process": {"timesteps": 50}, **model, "network": {**WORDED, **(network or {})}}
    return find("stable-diffusion").create(config, size=(16, 16), seed=seed, components=parts)


def vqgan_text(seed=0, **model):
    """A VQGAN of 16 x 16 pictures and 4 x 4 codes that is told words by `text_encoder`; its tokenizer comes as a component."""
    parts = {"autoencoder": vqgan().networks["autoencoder"].requires_grad_(False), "text_encoder": text_encoder()}
    config = {"discriminator": None, "prior": {"width": 32, "heads": 2, "depth": 2}, **model}
    return find("vqgan-text").create(config, size=(16, 16), seed=seed, components=parts)


def t5_files():
    """The files of a T5's tokenizer that reads letters and a few words: pieces with their scores, as `tokenizer.json`."""
    import tokenizers

    pieces = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        *((f"\u2581{w}", -2.0) for w in ("a", "red", "circle", "star")),
    ]
    pieces += [(letter, -6.0) for letter in "\u2581abcdefghijklmnopqrstuvwxyz"]
    engine = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=2))
    before = tokenizers.pre_tokenizers
    engine.pre_tokenizer = before.Sequence([before.WhitespaceSplit(), before.Metaspace()])
    engine.add_special_tokens(["<pad>", "</s>", "<unk>"])
    said = '{"tokenizer_class": "T5Tokenizer", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}'
    return {"tokenizer.json": engine.to_str().encode(), "tokenizer_config.json": said.encode()}


def t5(seed=0, width=24, length=256):
    """A T5 of `width` numbers a token."""
    model = T5Config(width=width, layers=2, heads=2, head_width=8, hidden=32, vocabulary=40)
    encoder = build_on(TextEncoderConfig(model=model, length=length))
    encoder.initialise(torch.Generator().manual_seed(seed))
    for parameter in encoder.parameters():
        parameter.data.mul_(5)  # so that its states differ from text to text
    encoder.files = t5_files()
    return encoder.eval().requires_grad_(False)


def stable_diffusion_3(seed=0, network=None, third=True, **model):
    """A Stable Diffusion 3 in the latents of `vae_kl`, told words by two small CLIPs and, unless told otherwise, a T5."""
    parts = {
        "autoencoder": vae_kl().autoencoder.requires_grad_(False), "text_encoder": text_encoder(projection=8),
        "text_encoder_2": text_encoder(1, projection=12, activation="gelu"), **({"text_encoder_3": t5(width=40)} if third else {}),
    }  # fmt: skip
    shape = {"width": 32, "depth": 2, "heads": 2, **(network or {})}
    return find("stable-diffusion-3").create({**model, "network": shape}, size=(16, 16), seed=seed, components=parts)


def captions(n=8, size=(16, 16), seed=0):
    """A batch with a caption to each picture."""
    words = ("a red circle", "a blue square", "세모", "a star, green")
    return replace(batch(n, size, seed, labels=False), caption=[words[i % len(words)] for i in range(n)])


CAPTIONS = (
    "a red circle",
    "a blue square",
    "a yellow star",
    "a green circle",
    "파란 네모",
    "노란 별",
    "red star",
    "blue circle",
)


def clip(seed=0, captions=CAPTIONS, **model):
    """A CLIP of 16 x 16 pictures and the words of CAPTIONS."""
    network = {
        "image": {"size": 16, "patch": 4, "width": 32, "layers": 2, "heads": 2},
        "text": {"width": 32, "layers": 2, "heads": 2, "positions": 16, "projection": 16},
    }
    config = {"network": network, "words": 40, "views": {"share": 0.0}, **model}
    return find("clip").create(find("clip").taught(config, captions), size=(16, 16), seed=seed)


def captioned(n=8, seed=0, captions=CAPTIONS):
    """Pictures with captions: `n` places of them, over and over again."""
    pictures = batch(n, seed=seed)
    told = [captions[i % len(captions)] for i in range(n)]
    return Batch(pictures.image, pictures.index, None, told, cluster=pictures.index)
