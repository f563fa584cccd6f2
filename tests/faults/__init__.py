"""Faults of all kinds, injected: what is promised must hold in each situation.

A situation is one script run once under one fault, in a process of its own. `faults.harness` runs it:

    outcome = run('prepare_bin.py', '--input=x.txt', '--dataset=x', cwd=tmp_path)
    assert_one_line(outcome, 'x.txt')                 # exit code 2, one line on stderr besides notes, no traceback
    outcome.code, outcome.out, outcome.err, outcome.seconds, outcome.peak_bytes

    run(..., seconds=20, memory=2_000_000_000)        # above these it is killed; assert_one_line then says so
    run(..., stdin=b'text', stdout='full')            # see `start` for every kind of stream
    run(..., env={'LANG': 'C'})                       # changes to the environment; None removes a variable
    run(..., fresh=True, env={'MPLBACKEND': 'bogus'})    # a new interpreter, for faults before or while Python imports
    process = start(...); process.send_signal(15); process.wait()    # a signal, or two at once
    run(..., fault=Fault('kill', 7))                  # killed at the seventh change to a file below cwd
    run(..., fault=Fault('full', 7))                  # the disk is full from the seventh such change on
    run(..., fault=Fault('count')).points             # these changes, in order

Each is forked from a process that has imported everything (`helpers.forks`); `fresh` starts a new interpreter instead.
The file layer is `helpers/file_layer.c`, loaded before the C library: it sees what Python, C++ and Rust write.

Every test says what kind of fault it is about, and how many situations it runs through, if not one:

    @pytest.mark.situation('hostile config.json')
    @pytest.mark.situation('killed at a write: train.py', 38)

`python -m tests.faults.count` prints the table of kinds and counts in docs/what_survives.md. All tests here are slow.
"""
