"""Public folders of T5's encoder (T5EncoderModel): config and names.

Parameters are named here as in public folders. Some files hold the table of tokens twice (`shared.weight` and
`encoder.embed_tokens.weight`): it is read once, and written again as it was. A whole T5 holds a decoder as well, which is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from ..conditioning.text_encoders import TextEncoderConfig
from ..errors import InputError, first_mistake
from ..networks.t5 import T5Config

CLASSES = ("T5EncoderModel", "T5ForConditionalGeneration", "T5Model")
TABLE, TWIN = "shared.weight", "encoder.embed_tokens.weight"
NOT_READ = ("decoder.", "lm_head.")
LENGTH = 512  # of a text, where nothing is said
DEFAULTS: dict[str, Any] = {  # of transformers' T5Config
    "vocab_size": 32128, "d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_heads": 8,
    "relative_attention_num_buckets": 32, "relative_attention_max_distance": 128, "layer_norm_epsilon": 1e-6,
    "feed_forward_proj": "relu", "eos_token_id": 1,
}  # fmt: skip


def names(tensors: Mapping[str, Tensor]) -> tuple[dict[str, str], dict[str, Any]]:
    """{our name: the file's}, and what is to be known to write them again."""
    found = {name: name for name in tensors if name != TWIN and not name.startswith(NOT_READ)}
    if TABLE not in found and TWIN in tensors:
        found[TABLE] = TWIN
    return found, {"twin": TWIN in tensors, "table": TABLE in tensors}


def encoder_config(
    public: Mapping[str, Any], where: str, length: int | None, use: Mapping[str, Any]
) -> TextEncoderConfig:
    """Our config of a public one; InputError for the first T5, whose layers are not gated."""
    full = {**DEFAULTS, **public}
    if full["feed_forward_proj"] != "gated-gelu":
        raise InputError(f"{where}: feed_forward_proj={full['feed_forward_proj']!r} cannot be loaded; 'gated-gelu' can")
    try:
        model = T5Config(
            width=full["d_model"], layers=full["num_layers"], heads=full["num_heads"], head_width=full["d_kv"],
            hidden=full["d_ff"], vocabulary=full["vocab_size"], buckets=full["relative_attention_num_buckets"],
            distance=full["relative_attention_max_distance"], eps=full["layer_norm_epsilon"], end=full["eos_token_id"],
        )  # fmt: skip
        return TextEncoderConfig(**{"model": model, "length": length or LENGTH, **use})
    except ValidationError as error:
        raise InputError(f"{where}: {first_mistake(error)}") from None


def config_of(shapes: Mapping[str, tuple[int, ...]], where: str, prefix: str = "") -> T5Config:
    """The config that shapes, under public names, are of; a head has 64 numbers where the sizes allow it."""
    at = lambda name: shapes[prefix + name]  # noqa: E731
    try:
        table = at(TABLE) if prefix + TABLE in shapes else at(TWIN)
        first = "encoder.block.0.layer"
        buckets, heads = at(f"{first}.0.SelfAttention.relative_attention_bias.weight")
        layers = 1 + max(
            int(n.removeprefix(prefix).split(".")[2]) for n in shapes if n.startswith(f"{prefix}encoder.block.")
        )
        return T5Config(
            width=table[1], vocabulary=table[0], layers=layers, heads=heads, buckets=buckets,
            head_width=at(f"{first}.0.SelfAttention.q.weight")[0] // heads,
            hidden=at(f"{first}.1.DenseReluDense.wi_0.weight")[0],
        )  # fmt: skip
    except (KeyError, ValueError) as error:
        raise InputError(f"{where} has no whole T5: it lacks {error.args[0]}") from None


def public_config(config: TextEncoderConfig) -> dict[str, Any]:
    """The public config of ours."""
    model: Any = config.model
    return {
        "architectures": [CLASSES[0]], "model_type": "t5", **DEFAULTS, "vocab_size": model.vocabulary, "d_model": model.width,
        "d_kv": model.head_width, "d_ff": model.hidden, "num_layers": model.layers, "num_heads": model.heads,
        "relative_attention_num_buckets": model.buckets, "relative_attention_max_distance": model.distance,
        "layer_norm_epsilon": model.eps, "feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu_new", "is_gated_act": True,
        "eos_token_id": model.end, "pad_token_id": 0, "is_encoder_decoder": False, "use_cache": False,
        "tie_word_embeddings": False,
    }  # fmt: skip


def public_tensors(tensors: Mapping[str, Tensor], layout: Mapping[str, Any]) -> dict[str, Tensor]:
    """Tensors under the names that they had."""
    found = dict(tensors)
    if layout.get("twin"):
        found[TWIN] = found[TABLE].clone() if layout.get("table", True) else found.pop(TABLE)
    return found
