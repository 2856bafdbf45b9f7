"""One rollout ahead: what was begun is what is taken, errors included, and nothing is taken for another rollout."""

import threading

import pytest

from lcot_plugin.policy.ahead import RolloutAhead
from lcot_plugin.policy.rollouts import Written


def written(*groups):
    return Written(list(groups), seconds=7.0, waited=0.0)


@pytest.fixture
def ahead():
    return RolloutAhead()


def test_nothing_was_begun(ahead):
    assert ahead.take(0) is None
    ahead.wait()


def test_it_is_written_meanwhile(ahead):
    go_on, begun = threading.Event(), threading.Event()

    def write():
        begun.set()
        assert go_on.wait(10)
        return written("groups")

    ahead.begin(3, write)
    assert begun.wait(10), "it does not wait to be taken"
    go_on.set()
    found = ahead.take(3)
    assert found.groups == ["groups"] and found.seconds == 7.0 and 0.0 < found.waited < 7.0
    assert ahead.take(3) is None, "each is taken once"


def test_another_rollout_is_not_taken(ahead):
    ahead.begin(3, lambda: written("groups of 3"))
    assert ahead.take(4) is None
    ahead.begin(5, lambda: written("groups of 5"))
    assert ahead.take(5).groups == ["groups of 5"]


def test_an_error_is_raised_where_it_is_taken(ahead):
    def write():
        raise ConnectionError("the server is gone")

    ahead.begin(1, write)
    ahead.wait()
    with pytest.raises(ConnectionError, match="gone"):
        ahead.take(1)
    ahead.begin(2, written)
    assert ahead.take(2).groups == []
