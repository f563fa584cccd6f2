"""Locks of folders, taken and released by several processes as fast as they can."""

import subprocess
import sys

import pytest
from helpers.scripts import PROJECT

HOLD = """
import os, sys, time
from common.errors import UserError
from common.folders import lock_folder

taken, end = 0, time.monotonic() + 2
while time.monotonic() < end:
    try:
        with lock_folder('folder', 'wait'):
            os.close(os.open('held', os.O_CREAT | os.O_EXCL))  # fails if another process holds the lock, too
            os.unlink('held')
            taken += 1
    except UserError as error:
        assert 'in use' in str(error), error
print(taken)
"""


@pytest.mark.slow
def test_no_two_processes_ever_hold_a_lock_whose_file_comes_and_goes(tmp_path):
    """The file of the lock is removed each time: a process that had opened it before must notice."""
    command = [sys.executable, '-c', f'import sys\nsys.path.insert(0, {str(PROJECT)!r})\n{HOLD}']
    running = [subprocess.Popen(command, cwd=tmp_path, stdout=-1, stderr=-1, text=True) for _ in range(4)]
    for process in running:
        out, err = process.communicate()
        assert process.returncode == 0, err
        assert int(out) > 10
    assert not [path for path in tmp_path.rglob('*') if path.is_file()]
