"""What is true of every system, as its tests say it."""

import torch

from hwaga.training import checkpoint


def resumes_to_the_bit(make, tmp_path, whole, half):
    """make(seed) gives a trainer; a run of `whole` steps and one that was kept after `half` end with the same bits, optimizers and
    averages too. Gives what was kept, by file."""
    straight = make(0)
    for _ in range(whole):
        straight.step()
    begun = make(0)
    for _ in range(half):
        begun.step()
    checkpoint.save(tmp_path / "checkpoints", half, begun, {}, {}, 2)
    again = make(9)
    checkpoint.load(checkpoint.latest(tmp_path / "checkpoints", print), again, {})
    for _ in range(whole - half):
        again.step()
    one, other = checkpoint.parts(straight, {}), checkpoint.parts(again, {})
    assert one.keys() == other.keys()
    for file, tensors in one.items():
        for key, value in tensors.items():
            assert torch.equal(value, other[file][key]), f"{file} {key}"
    return one


def pictures_stand_alone(paint, monkeypatch, batch=2 * 256):
    """paint(n) gives n pictures: each is the same whatever is painted beside it, in one batch or in several."""
    many, few = paint(5), paint(2)
    monkeypatch.setattr("hwaga.systems.base.PIXELS_A_BATCH", batch)
    split = paint(5)
    assert (many[:2] - few).abs().max() < 1e-5 and (many - split).abs().max() < 1e-5


def two_calls_are_equal(paint):
    """Of one seed, and no generator that the program shares is touched."""
    before = torch.random.get_rng_state()
    assert torch.equal(paint(2), paint(2))
    assert torch.equal(before, torch.random.get_rng_state())


def overfits(system, batch, steps, rate=3e-3, to=0.05):
    """The denoising loss of one batch and one draw falls to a share `to` of what it was."""
    import tiny

    optimizer, losses = torch.optim.AdamW(system.network.parameters(), rate), []
    for _ in range(steps):
        terms = system.loss(batch, tiny.Draw(0))
        sum(terms.values()).backward()
        losses.append(terms["denoising"].item())
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < to * losses[0]
