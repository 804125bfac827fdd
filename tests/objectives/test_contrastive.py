"""The contrastive loss: its closed forms, what is no wrong answer, and that several processes give the gradient of one."""

import math

import pytest
import torch
import torch.multiprocessing as mp

from hwaga.objectives.contrastive import Everyone, contrastive, ranks

SCALE = torch.tensor(math.log(10.0), dtype=torch.float64)


def vectors(n=6, d=5, seed=0):
    g = torch.Generator().manual_seed(seed)
    return (torch.randn(n, d, generator=g, dtype=torch.float64) for _ in range(2))


def test_the_loss_is_the_symmetric_cross_entropy_of_the_paper():
    images, texts = vectors()
    u, v = (x.float() / x.float().norm(dim=1, keepdim=True) for x in (images, texts))
    logits = 10 * u @ v.T
    rows = logits.logsumexp(1) - logits.diagonal()
    columns = logits.logsumexp(0) - logits.diagonal()
    assert (contrastive(images, texts, SCALE) - (rows + columns) / 2).abs().max() < 1e-5


def test_vectors_all_alike_cost_log_n_and_perfect_ones_nothing():
    same = torch.ones(8, 4)
    assert (contrastive(same, same, SCALE) - math.log(8)).abs().max() < 1e-6
    assert contrastive(torch.eye(8), torch.eye(8), torch.tensor(9.0)).max() < 1e-6


def test_the_scale_goes_no_higher_than_a_hundred():
    images, texts = vectors()
    assert torch.equal(contrastive(images, texts, torch.tensor(7.0)), contrastive(images, texts, torch.tensor(60.0)))


def test_pairs_that_mean_the_same_are_no_wrong_answers():
    images, texts = vectors(4)
    images[1], texts[1] = images[0], texts[0]
    meaning = torch.tensor([[7, 1], [7, 2], [3, 3], [4, 4]])
    spared = contrastive(images, texts, SCALE, meaning)
    alone = contrastive(images[[0, 2, 3]], texts[[0, 2, 3]], SCALE)
    assert (spared[0] - alone[0]).abs() < 1e-6 and (spared[1] - alone[0]).abs() < 1e-6
    assert spared[2] == contrastive(images, texts, SCALE)[2]  # to the others both stay wrong


def test_ranks_count_the_wrong_ones_that_are_nearer():
    texts = torch.eye(4)
    images = torch.eye(4)
    assert [rank.tolist() for rank in ranks(images, texts)] == [[0] * 4] * 2
    images[0] = torch.tensor([0.5, 1.0, 0.0, 0.0])
    assert ranks(images, texts)[0].tolist() == [1, 0, 0, 0]
    assert ranks(images, texts, torch.tensor([[1], [1], [2], [3]]))[0].tolist() == [0, 0, 0, 0]
    same = torch.ones(3, 2)
    assert ranks(same, same)[0].tolist() == [2, 2, 2]  # all alike is nothing found


def test_everyone_is_alone_in_one_process():
    assert Everyone.of(torch.zeros(3)) is None


def _process(rank, world, port, queue):
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    images, texts = vectors(7)
    start, end = (0, 3) if rank == 0 else (3, 7)
    parts = [x[start:end].clone().requires_grad_() for x in (images, texts)]
    scale = SCALE.clone().requires_grad_()
    meaning = torch.tensor([[0], [1], [2], [0], [4], [5], [1]])[start:end]
    losses = contrastive(*parts, scale, meaning, Everyone.of(parts[0]))
    (losses.mean() * (len(losses) / 7)).backward()
    queue.put((rank, losses.tolist(), [p.grad.tolist() for p in parts], scale.grad.item()))
    dist.destroy_process_group()


def test_two_processes_give_the_losses_and_gradients_of_one(free_port):
    context = mp.get_context("spawn")
    queue = context.SimpleQueue()
    processes = [context.Process(target=_process, args=(rank, 2, free_port, queue)) for rank in range(2)]
    for process in processes:
        process.start()
    found = sorted(queue.get() for _ in processes)
    for process in processes:
        process.join(60)
    whole = [x.requires_grad_() for x in vectors(7)]
    scale = SCALE.clone().requires_grad_()
    losses = contrastive(*whole, scale, torch.tensor([[0], [1], [2], [0], [4], [5], [1]]))
    losses.mean().backward()
    assert torch.tensor([x for _, part, _, _ in found for x in part]).sub(losses.float()).abs().max() < 1e-6
    for k, tensor in enumerate(whole):
        parts = torch.tensor([row for _, _, grads, _ in found for row in grads[k]])
        assert (parts - tensor.grad.float()).abs().max() < 1e-6
    assert abs(sum(grad for *_, grad in found) - scale.grad.item()) < 1e-6


@pytest.fixture
def free_port():
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
