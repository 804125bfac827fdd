"""CLIP as a folder that transformers loads: config.json (CLIPConfig), model.safetensors, tokenizer and image processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..conditioning import bpe
from ..files import write_json
from ..networks.clip import FIRST, ClipConfig, ClipImageConfig
from ..networks.clip_text import ClipTextConfig

MEAN = STD = (0.5, 0.5, 0.5)
"""What pictures in [0, 1] are brought to [-1, 1] by."""


def public_config(config: ClipConfig, start: int) -> dict[str, Any]:
    """What transformers' config.json says; `start` is the number of the start token."""
    image, text = config.image, config.text
    return {
        "architectures": ["CLIPModel"], "model_type": "clip", "projection_dim": text.projection,
        "logit_scale_init_value": FIRST,
        "text_config": {
            "model_type": "clip_text_model", **_tower(text), "projection_dim": text.projection,
            "vocab_size": text.vocabulary, "max_position_embeddings": text.positions, "bos_token_id": start,
            "eos_token_id": text.end, "pad_token_id": text.end,
        },
        "vision_config": {
            "model_type": "clip_vision_model", **_tower(image), "projection_dim": text.projection, "image_size": image.size,
            "patch_size": image.patch, "num_channels": 3,
        },
    }  # fmt: skip


def _tower(config: ClipImageConfig | ClipTextConfig) -> dict[str, Any]:
    return {
        "hidden_size": config.width, "intermediate_size": config.hidden, "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads, "hidden_act": config.activation, "layer_norm_eps": config.eps,
    }  # fmt: skip


def write_beside(config: ClipConfig, merges: tuple[str, ...], folder: Path) -> None:
    """All files of the folder but the weights."""
    write_json(folder / "config.json", public_config(config, bpe.vocabulary(merges)[bpe.START]))
    for name, content in bpe.files(merges, config.text.positions).items():
        (folder / name).write_bytes(content)
    side = {"height": config.image.size, "width": config.image.size}
    prepared = {
        "image_processor_type": "CLIPImageProcessor", "do_resize": True, "size": side, "resample": 3,
        "do_center_crop": False, "crop_size": side, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
        "image_mean": list(MEAN), "image_std": list(STD), "do_convert_rgb": True,
    }  # fmt: skip
    write_json(folder / "preprocessor_config.json", prepared)
