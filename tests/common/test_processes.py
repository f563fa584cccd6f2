"""What a process knows of the others, and which signals stop it."""

import os
import signal

import pytest

from common.processes import Processes, StopSignals


def test_one_process_has_everything():
    processes = Processes('cpu')
    assert (processes.count, processes.rank, processes.first, processes.device) == (1, 0, True, 'cpu')
    assert processes.share([1, 2, 3]) == processes.gather([1, 2, 3]) == [1, 2, 3]
    assert processes.sum(1, 2.5) == processes.max(1, 2.5) == [1.0, 2.5]
    assert processes.broadcast('x') == 'x'


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_noted_and_later_ones_have_their_old_effect(number):
    before = signal.getsignal(number)
    with StopSignals() as signals:
        assert signals.received == 0
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), signal.SIGINT)  # as torchrun passes on the same Ctrl-C
        assert signals.received == number
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_stops_at_once():
    with StopSignals() as signals, pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        signals._at -= 4
        os.kill(os.getpid(), signal.SIGINT)
        signal.pause()
