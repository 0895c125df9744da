import pytest
import torch

from harness.determinism import NO_KERNEL, as_trained, deterministic

FIRST, NOTHING = torch.zeros(1, dtype=torch.long), torch.zeros(1)


def put():
    """An operation that torch has no deterministic kernel for, on a CPU either."""
    return torch.ones(2).put_(FIRST, NOTHING)


@pytest.fixture
def asked():
    """A process that asked for deterministic kernels, as a trial's does."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def test_strictly_an_operation_without_a_kernel_raises_and_the_process_is_as_before(asked):
    with pytest.raises(RuntimeError, match=NO_KERNEL), deterministic(strictly=True):
        put()
    assert torch.is_deterministic_algorithms_warn_only_enabled()


def test_a_process_that_did_not_ask_is_left_alone():
    with deterministic(strictly=True):
        assert not torch.are_deterministic_algorithms_enabled()
        assert put().tolist() == [0.0, 1.0]


@pytest.mark.filterwarnings("ignore:put_ does not have a deterministic implementation")
def test_as_trained_runs_strictly_and_without_where_a_kernel_is_missing(asked):
    strictly = []

    def run():
        strictly.append(not torch.is_deterministic_algorithms_warn_only_enabled())
        return put()

    assert as_trained(run).tolist() == [0.0, 1.0]
    assert strictly == [True, False]
    assert as_trained(lambda: torch.is_deterministic_algorithms_warn_only_enabled()) is False


def test_an_error_of_the_run_itself_is_raised_once(asked):
    calls = []

    def fails():
        calls.append(1)
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        as_trained(fails)
    assert len(calls) == 1
