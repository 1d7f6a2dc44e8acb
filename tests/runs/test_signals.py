import pytest
from torch import distributed

from fnn_lightning.runs.signals import lost_a_rank


@pytest.mark.parametrize(
    ("message", "lost"),
    [
        ("[gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 10000ms for recv", True),
        ("NCCL communicator was aborted on rank 0", True),
        ("Connection closed by peer [127.0.0.1]:4711", True),
        ("Read error [127.0.0.1]:4711: Connection reset by peer", True),
        ("Broken pipe", True),
        # what an operation reports when another one has timed out
        ("Application timeout caused pair closure", True),
        ("mat1 and mat2 shapes cannot be multiplied (32x784 and 785x16)", False),
    ],
)
def test_a_lost_rank_is_told_from_other_errors(
    monkeypatch: pytest.MonkeyPatch, message: str, lost: bool
) -> None:
    error = RuntimeError(message)
    assert not lost_a_rank(error)  # there are no other ranks
    assert lost_a_rank(distributed.DistStoreError(message)) == lost  # not yet
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    assert lost_a_rank(error) == lost
    assert not lost_a_rank(ValueError(message))
