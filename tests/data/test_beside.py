"""What a frozen network makes of pictures: computed once, the same as anew, mirrored with them, shared by all that want it."""

import multiprocessing
import os

import numpy as np
import pytest
import tiny
import torch

from hwaga.data import DataConfig, open_data
from hwaga.data.beside import with_beside
from hwaga.interfaces import Precomputed
from hwaga.systems import latents

AT = np.array([5, 0, 17, 5])


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HWAGA_CACHE", str(tmp_path))
    return tmp_path


def blurred(calls=None, key="blur"):
    """A stand-in for an autoencoder: left and right halves' means, which tell a mirrored picture."""

    def compute(image):
        if calls is not None:
            calls.append(len(image))
        return image.unflatten(3, (2, 8)).mean((2, 4))

    return {"halves": Precomputed(lambda: key, (3, 2), compute)}


def data(**config):
    return open_data(DataConfig(source="digits", size=16, **config))


def test_it_is_computed_once_and_is_what_it_would_be_anew(cache):
    calls = []
    held, lacking = with_beside(data(), blurred(calls))
    assert not lacking and sum(calls) == len(held.store)
    batch = held.batch(AT)
    assert torch.equal(batch.extra["halves"], blurred()["halves"].compute(batch.image))
    again, _ = with_beside(data(), blurred(calls))
    assert sum(calls) == len(held.store) and torch.equal(again.batch(AT).extra["halves"], batch.extra["halves"])


def test_all_splits_share_one_entry(cache):
    calls = []
    for split in ("train", "held-out"):
        plain = open_data(DataConfig(source="digits", size=16), split)
        held, _ = with_beside(plain, blurred(calls))
        batch = held.batch(AT)
        assert torch.equal(batch.extra["halves"], blurred()["halves"].compute(batch.image))
    assert sum(calls) == len(held.store) and len(list(cache.glob("beside-*/"))) == 1


def test_a_mirrored_picture_has_the_values_of_the_mirrored_picture(cache):
    held, _ = with_beside(data(flip=True), blurred())
    at, epochs = np.arange(40), np.full(40, 3)
    batch = held.batch(at, epochs)
    assert torch.equal(batch.extra["halves"], blurred()["halves"].compute(batch.image))
    assert not torch.equal(batch.extra["halves"], held.batch(at).extra["halves"])


def test_another_network_has_another_entry_and_another_fingerprint(cache):
    one, _ = with_beside(data(), blurred(key="one"))
    two, _ = with_beside(data(), blurred(key="two"))
    assert len(list(cache.glob("beside-*/"))) == 2
    assert len({data().fingerprint, one.fingerprint, two.fingerprint}) == 3


def test_random_windows_cannot_be_kept(cache):
    held, lacking = with_beside(data(random_crop=True), blurred())
    assert lacking == ("halves",) and not held.batch(AT).extra


def _build(folder, queue):
    os.environ["HWAGA_CACHE"] = str(folder)
    torch.set_num_threads(1)
    calls = []
    held, _ = with_beside(data(), blurred(calls))
    queue.put((bool(calls), held.batch(AT).extra["halves"].sum().item()))


def test_two_processes_may_want_it_at_once(cache):
    context = multiprocessing.get_context("fork")
    data()  # the pictures themselves are there
    queue = context.Queue()
    both = [context.Process(target=_build, args=(cache, queue)) for _ in range(2)]
    for process in both:
        process.start()
    found = [queue.get(timeout=60) for _ in both]
    for process in both:
        process.join()
    assert sorted(built for built, _ in found) == [False, True] and found[0][1] == found[1][1]


def test_latents_of_a_batch_are_the_same_kept_or_computed(cache):
    codec = tiny.vae_kl().autoencoder
    codec.scale.fill_(0.5)
    codec.shift.fill_(0.25)
    held, _ = with_beside(data(), {latents.MOMENTS: latents.precomputed(codec, (16, 16))})
    kept, plain = held.batch(AT), data().batch(AT)
    for sampled in (True, False):
        a, b = (latents.of_batch(codec, batch, tiny.Draw(3), sampled) for batch in (kept, plain))
        assert a.shape == (4, 4, 8, 8) and (a - b).abs().max() < 1e-5
    assert (a - codec.encode(plain.image)).abs().max() < 1e-5


def test_the_key_of_latents_is_of_weights_and_not_of_their_scale():
    one, two = tiny.vae_kl(seed=0).autoencoder, tiny.vae_kl(seed=0).autoencoder
    two.scale.fill_(3.0)
    assert latents.fingerprint(one) == latents.fingerprint(two)
    assert latents.fingerprint(one) != latents.fingerprint(tiny.vae_kl(seed=1).autoencoder)
