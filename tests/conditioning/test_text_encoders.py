"""Tokenizers, CLIP's text transformer and prompts: against transformers, and closed forms without it."""

import json

import pytest
import tiny
import torch

from hwaga.conditioning import bpe, prompts
from hwaga.conditioning.prompts import Part, Prompt, encoded, listed_prompts, parts
from hwaga.conditioning.text_encoders import TextEncoderConfig
from hwaga.conditioning.tokenizers import Tokenizer
from hwaga.errors import InputError
from hwaga.networks.clip_text import ClipTextConfig

TEXTS = [
    "",
    "a photo of a cat",
    "Hello!!  WORLD, 8k #1 — naïve",
    "고양이 🐈",
    "it's <|endoftext|> over",
    "a! b !c",
    "\tline\nbreak ",
    "x" * 300,
]


def files(pad="<|endoftext|>"):
    made = bpe.files(bpe.learned(["a photo of a cat", "hello world photo cat", "a photo"] * 3, 40), 77)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        made[name] = json.dumps(json.loads(made[name]) | {"pad_token": pad}).encode()
    return made


@pytest.mark.parametrize("pad", ["<|endoftext|>", "!"])
def test_tokens_are_those_of_transformers(tmp_path, pad):
    transformers = pytest.importorskip("transformers")
    ours = Tokenizer(files(pad))
    for name, content in ours.files.items():
        (tmp_path / name).write_bytes(content)
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        want = theirs(text, padding="max_length", max_length=77, truncation=True).input_ids
        assert ours.framed(ours(text).ids[:75], 77) == want, text


def test_spans_lead_back_to_the_words():
    tokenizer = Tokenizer(files())
    for text in TEXTS:
        found = tokenizer(text)
        assert all(0 <= a <= b <= len(text) for a, b in found.spans) and len(found.ids) == len(found.spans)


@pytest.mark.parametrize(("activation", "projection", "skip", "norm", "end"), [
    ("quick_gelu", 0, 0, True, 2), ("gelu", 0, 0, True, 513), ("quick_gelu", 0, 1, False, 2), ("gelu", 12, 1, False, 2),
    ("quick_gelu", 0, 1, True, 2),
])  # fmt: skip
def test_the_text_transformer_is_that_of_transformers(activation, projection, skip, norm, end):
    transformers = pytest.importorskip("transformers")
    config = ClipTextConfig(
        width=16, layers=3, heads=2, hidden=24, vocabulary=514, positions=24, activation=activation, projection=projection, end=end
    )  # fmt: skip
    ours = config.build()
    ours.initialise(torch.Generator().manual_seed(0))
    for p in ours.parameters():
        p.data.mul_(5)
    public = transformers.CLIPTextConfig(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=24, vocab_size=514,
        max_position_embeddings=24, hidden_act=activation, projection_dim=projection or 16, eos_token_id=end, bos_token_id=0,
        pad_token_id=1,
    )  # fmt: skip
    theirs = (transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel)(public).eval()
    names = set(theirs.state_dict())
    state = {k if k in names else k.removeprefix("text_model."): v for k, v in ours.state_dict().items()}
    theirs.load_state_dict(state)
    ids = torch.tensor([[512, 5, 7, 9, 513, 513, 513], [512, 3, 513, 513, 513, 513, 513]])
    with torch.no_grad():
        read, want = ours(ids, skip=skip, final_norm=norm), theirs(ids, output_hidden_states=True)
        inner = theirs.text_model if hasattr(theirs, "text_model") else theirs
        states = want.hidden_states[-1 - skip]
        assert (read.states - (inner.final_layer_norm(states) if norm else states)).abs().max() < 1e-5
        pooled = want.text_embeds if projection else want.pooler_output
        mine = ours.text_projection(read.end) if projection else read.end
        assert (mine - pooled).abs().max() < 1e-5


def test_a_token_looks_back_only():
    encoder = tiny.text_encoder()
    one, two = (encoder.read([[512, 5, last, 513]]).states for last in (6, 7))
    assert torch.equal(one[:, :2], two[:, :2]) and not torch.equal(one[:, 2:], two[:, 2:])


def test_what_cannot_be_is_refused():
    with pytest.raises(InputError, match="no tokenizer: vocab.json with merges.txt"):
        tiny.text_encoder().config.build().encode(["a"])
    with pytest.raises(ValueError, match="skip=12: the network has 12 layers"):
        TextEncoderConfig(skip=12)


# ------------------------------------------------------------------------------------------------------------- prompts


@pytest.mark.parametrize(("prompt", "want"), [
    ("a cat", [("a cat", 1.0)]),
    ("a (red:1.5) cat", [("a ", 1.0), ("red", 1.5), (" cat", 1.0)]),
    ("(a)", [("a", 1.1)]), ("((a))", [("a", 1.1**2)]), ("[a]", [("a", 1 / 1.1)]),
    ("(a (b:2) c:0.5)", [("a ", 0.5), ("b", 1.0), (" c", 0.5)]),
    (r"a \(b\) 1:2", [("a (b) 1:2", 1.0)]),
    ("", []),
])  # fmt: skip
def test_weights_are_read_as_they_are_written(prompt, want):
    found = parts(prompt)
    assert [p.text for p in found] == [text for text, _ in want]
    assert [p.weight for p in found] == pytest.approx([weight for _, weight in want])


@pytest.mark.parametrize("prompt", ["(a", "a)", "[a)", "a]"])
def test_brackets_that_do_not_match_are_refused(prompt):
    with pytest.raises(InputError, match="closes nothing|never closed"):
        parts(prompt)


def test_a_weighted_state_lies_on_the_line_from_the_empty_prompts():
    encoder = tiny.text_encoder()
    plain, heavy = (encoded(encoder, [p], weighted=True).states for p in ("a b c", "a (b:1.5) c"))
    empty = encoded(encoder, [""]).states
    place = 2  # begin, a, b
    assert torch.allclose(heavy[:, place], empty[:, place] + 1.5 * (plain[:, place] - empty[:, place]), atol=1e-6)
    others = [k for k in range(24) if k != place]
    assert torch.equal(heavy[:, others], plain[:, others])


def test_pieces_of_a_long_prompt_are_those_prompts_side_by_side():
    encoder = tiny.text_encoder()
    words = [chr(ord("a") + k % 26) for k in range(50)]
    whole = encoded(encoder, [" ".join(words)], chunked=True)
    alone = [encoded(encoder, [" ".join(words[k : k + 22])]).states for k in (0, 22, 44)]
    assert whole.lost == ("",) and torch.allclose(whole.states, torch.cat(alone, dim=1), atol=1e-6)
    assert prompts.chunks_of(encoder, [" ".join(words), "a"]) == 3
    assert encoded(encoder, ["a"], chunked=True, least=3).states.shape == (1, 72, 16)


def test_lost_words_are_whole_words_in_their_own_spelling():
    encoder = tiny.text_encoder()
    cut = encoder.encode(["One two three fourth FIVE Six seven", "short"])
    assert cut.lost == ("Six seven", "") and cut.states.shape == (2, 24, 16)


def test_one_pair_of_prompts_a_picture():
    assert listed_prompts(None, None, 2) == (Prompt("", None),) * 2
    assert listed_prompts(["a", "b"], "x", 1) == (Prompt("a", "x"), Prompt("b", "x"))
    assert listed_prompts(("a", "b"), ["x", None], 2)[1:3] == (Prompt("a", "x"), Prompt("b", None))
    assert Part("a", 1.0).weight == 1
