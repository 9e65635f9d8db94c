import torch

from causal_tune.runtimes.cuda_graphs import Repeated


def test_sizes_are_recorded_when_they_come_again_and_no_more_than_four_of_them() -> None:
    recordings: list[int] = []

    def record(batch: torch.Tensor):
        size = len(batch)
        recordings.append(size)
        return lambda batch: ("recorded", size, batch.sum().item())

    calls = Repeated(lambda batch: ("as it is", len(batch), batch.sum().item()), record)
    for size in (1, 2, 3, 4, 5):
        assert calls(torch.ones(size)) == ("as it is", size, size)
    for size in (1, 2, 3, 4):
        for factor in (1.0, 2.0):
            assert calls(factor * torch.ones(size)) == ("recorded", size, factor * size)
    for _ in range(2):
        assert calls(torch.ones(5)) == ("as it is", 5, 5)
    assert recordings == [1, 2, 3, 4]
