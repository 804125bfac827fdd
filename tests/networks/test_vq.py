"""Codebooks: exact lookup in little memory, straight-through gradients, averages, restarts, FSQ, Gumbel."""

import math

import pytest
import tiny
import torch
from pydantic import ValidationError

from hwaga.networks.vq import BLOCK_BYTES, QuantizerConfig, VQModelConfig, nearest, straight_through


def gaussian(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def quantizer(seed=0, **config):
    module = QuantizerConfig(**config).build()
    module.initialise(torch.Generator().manual_seed(seed))
    return module


def brute(vectors, book):
    return (vectors.double()[:, None] - book.double()[None]).square().sum(-1).argmin(1)


@pytest.mark.parametrize(("n", "k", "d"), [(1, 1, 3), (70, 5, 1), (300, 64, 8), (257, 65, 4), (500, 1000, 16)])
def test_lookup_finds_the_nearest_vector_whatever_the_block(n, k, d, monkeypatch):
    vectors, book = gaussian(n, d), gaussian(k, d, seed=1)
    want = brute(vectors, book)
    assert torch.equal(nearest(vectors, book), want)
    monkeypatch.setitem(BLOCK_BYTES, "cpu", 4 * 128 * 7)
    assert torch.equal(nearest(vectors, book), want)


def test_of_equally_near_vectors_the_first_is_taken():
    book = gaussian(40, 6).repeat(5, 1)[torch.randperm(200, generator=torch.Generator().manual_seed(0))]
    vectors = gaussian(300, 6, seed=2)
    assert torch.equal(nearest(vectors, book), brute(vectors, book))
    assert nearest(gaussian(9, 4), torch.zeros(100, 4)).eq(0).all()


def test_lookup_is_right_where_rounding_hides_the_difference():
    """Vectors far from the origin, codes close together: |e|^2 alone is 10,000 times the differences that decide."""
    book = 1000 + gaussian(50, 4)
    vectors = 1000 + gaussian(64, 4, seed=3)
    found, want = nearest(vectors, book), brute(vectors, book)
    away = lambda codes: (vectors.double() - book[codes].double()).square().sum(1)  # noqa: E731
    assert (away(found) <= away(want) + 0.6).all()  # what single precision leaves of 4e6
    near = nearest(vectors - 1000, book - 1000)
    assert torch.equal(near, brute(vectors - 1000, book - 1000))


def test_the_gradient_goes_straight_through_the_choice():
    z = gaussian(2, 4, 3, 3).requires_grad_()
    found = quantizer(codes=8, width=4)(z)
    weights = gaussian(2, 4, 3, 3, seed=5)
    (found.vectors * weights).sum().backward()
    assert torch.equal(z.grad, weights)
    assert torch.equal(straight_through(z, z * 3).detach(), z + (z * 3 - z)) and found.codes.dtype == torch.int64


def test_codebook_and_commitment_losses_pull_one_side_each():
    """Against the closed form: d/de of the mean of |z - e|^2, d/dz of a quarter of it."""
    module, z = quantizer(codes=4, width=2), gaussian(1, 2, 1, 1).requires_grad_()
    found = module(z)
    found.loss.sum().backward()
    chosen = module.embedding.weight[found.codes.flatten()][0]
    away = (z[0, :, 0, 0] - chosen).detach()
    assert torch.allclose(z.grad[0, :, 0, 0], 0.25 * 2 * away / 2)
    assert torch.allclose(module.embedding.weight.grad[found.codes.item()], -2 * away / 2)
    assert torch.allclose(found.loss, 1.25 * away.square().mean())


def test_averages_follow_the_vectors_that_chose_a_code():
    """N <- d N + (1 - d) n and m <- d m + (1 - d) sum z, e = m / N (van den Oord et al. 2017, appendix A.1)."""
    module = quantizer(codes=3, width=2, update="average", decay=0.9)
    counts, sums = module.use.clone(), module.sums.clone()
    for step in range(3):
        z = gaussian(2, 2, 2, 2, seed=step)
        codes = module.codes(z)
        module.learn(z, codes, torch.rand(2, 4, generator=torch.Generator().manual_seed(step)))
        flat = z.permute(0, 2, 3, 1).reshape(-1, 2)
        for k in range(3):
            mine = flat[codes.flatten() == k]
            counts[k] = 0.9 * counts[k] + 0.1 * len(mine)
            sums[k] = 0.9 * sums[k] + 0.1 * mine.sum(0)
    assert torch.allclose(module.use, counts) and torch.allclose(module.embedding.weight, sums / counts[:, None])
    assert not module.embedding.weight.requires_grad


def test_idle_codes_are_put_on_vectors_of_the_batch_always_the_same_ones():
    def after(seed):
        module = quantizer(codes=8, width=2, update="average", restart=0.1, decay=0.99)
        z = gaussian(4, 2, 4, 4)
        module.learn(z, module.codes(z), torch.rand(4, 16, generator=torch.Generator().manual_seed(seed)))
        return module, z

    module, z = after(0)
    flat = z.permute(0, 2, 3, 1).reshape(-1, 2)
    assert all((flat - row).abs().sum(1).min() < 1e-6 for row in module.embedding.weight)  # all began on data
    assert torch.equal(module.embedding.weight, after(0)[0].embedding.weight)
    assert not torch.equal(module.embedding.weight, after(1)[0].embedding.weight)
    assert len(module.embedding.weight.unique(dim=0)) == 8
    used = module.use.clone()
    module.learn(z, module.codes(z), torch.zeros(4, 16))
    assert (module.use > 0).all() and not torch.equal(used, module.use)


def test_a_code_in_use_stays_where_it_is():
    module = quantizer(codes=2, width=1, restart=0.5, decay=0.9)
    with torch.no_grad():
        module.embedding.weight.copy_(torch.tensor([[-1.0], [100.0]]))
        module.use.fill_(4.0)
    z = torch.full((1, 1, 2, 4), -1.5)
    for _ in range(7):  # its average use is 4 * 0.9^7 < 0.5 * 4 then
        module.learn(z, module.codes(z), torch.rand(1, 8, generator=torch.Generator().manual_seed(0)))
    assert module.embedding.weight[0] == -1.0 and module.embedding.weight[1] == -1.5


def test_cosine_codes_compare_directions_alone():
    module = quantizer(codes=16, width=4, cosine=True)
    z = gaussian(2, 4, 3, 3)
    assert torch.equal(module.codes(z), module.codes(7 * z))
    found = module(z)
    assert torch.allclose(found.vectors.norm(dim=1), torch.ones(2, 3, 3), atol=1e-5)
    book = torch.nn.functional.normalize(module.embedding.weight, dim=1)
    flat = torch.nn.functional.normalize(z.permute(0, 2, 3, 1).reshape(-1, 4), dim=1)
    assert torch.equal(found.codes.flatten(), (flat @ book.T).argmax(1))


def test_a_restart_before_the_backward_pass_does_not_disturb_it():
    module = quantizer(codes=16, width=4, cosine=True, restart=0.2)
    z = gaussian(2, 4, 3, 3).requires_grad_()
    found = module(z)
    module.learn(z.detach(), found.codes, torch.rand(2, 9, generator=torch.Generator().manual_seed(0)))
    (found.vectors.square().sum() + found.loss.sum()).backward()
    assert torch.isfinite(z.grad).all()


@pytest.mark.parametrize("levels", [(8, 5, 5, 5), (2, 3), (7,)])
def test_fsq_codes_and_vectors_belong_together(levels):
    module = quantizer(kind="fsq", levels=levels)
    assert module.config.codes == math.prod(levels) and module.config.width == len(levels)
    every = torch.arange(module.config.codes).view(1, 1, -1)
    vectors = module.vectors(every)
    assert len(vectors[0, :, 0].T.unique(dim=0)) == module.config.codes and vectors.abs().max() <= 1
    z = 3 * gaussian(2, len(levels), 5, 5)
    found = module(z)
    assert torch.allclose(module.vectors(found.codes), found.vectors, atol=1e-6)
    assert found.codes.min() >= 0 and found.codes.max() < module.config.codes
    assert torch.equal(module.codes(1e6 * torch.ones(1, len(levels), 1, 1)), every[:, :, -1:])


def test_fsq_rounds_straight_through():
    z = gaussian(2, 2, 3, 3).requires_grad_()
    quantizer(kind="fsq", levels=(5, 5))(z).vectors.sum().backward()
    half = 4 * 1.001 / 2
    assert torch.allclose(z.grad, (1 - z.detach().tanh() ** 2) * half / 2, atol=1e-6)


def test_gumbel_takes_the_likeliest_code_and_draws_in_training():
    module = quantizer(kind="gumbel", codes=6, width=4)
    z = gaussian(2, 4, 3, 3).requires_grad_()
    assert torch.equal(module.codes(z), module.proj(z).argmax(1))
    assert torch.equal(module(z).codes, module.codes(z))
    draws = torch.rand(4000, 1, 6, generator=torch.Generator().manual_seed(0))
    one = z.detach()[:1, :, :1, :1]
    drawn = module(one.expand(4000, -1, -1, -1), draws)
    shares = torch.bincount(drawn.codes.flatten(), minlength=6) / 4000
    assert (
        shares - module.proj(one).softmax(1).flatten()
    ).abs().max() < 0.03  # Gumbel's maximum is a draw from softmax
    module(z, draws[:18].view(2, 9, 6)).vectors.sum().backward()
    assert module.proj.weight.grad.any() and z.grad.any() and drawn.loss.min() >= 0


@pytest.mark.parametrize(
    "config",
    [
        {"kind": "fsq"},
        {"levels": (3, 3)},
        {"kind": "fsq", "levels": (1, 3)},
        {"kind": "fsq", "levels": (3, 3), "codes": 8},
    ],
)
def test_codebooks_that_cannot_be_are_refused(config):
    with pytest.raises(ValidationError):
        QuantizerConfig(**config)


@pytest.mark.parametrize(
    "book",
    [
        {"codes": 16, "width": 4}, {"codes": 16, "width": 2, "cosine": True}, {"kind": "fsq", "levels": (5, 3)},
        {"kind": "gumbel", "codes": 16, "width": 8},
    ],
)  # fmt: skip
def test_every_parameter_of_a_tokenizer_gets_a_gradient(book):
    config = VQModelConfig(
        channels=(8, 16), attention=(False, True), blocks=1, groups=4, latent_channels=8, quantizer=book, patch=2
    )
    network = config.build()
    network.initialise(torch.Generator().manual_seed(0))
    tiny.fill_zeros(network)
    image = tiny.batch(2).image
    told = network(image, torch.rand(2, 16, 16) if book.get("kind") == "gumbel" else None)
    assert told.image.shape == image.shape and told.codes.shape == (2, 4, 4)
    ((told.image - image).square().mean() + told.loss.mean()).backward()
    dead = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []
