"""The road to this model and on from it: one script each, to be run and read."""

import sys

if sys.argv[0] == '-m':  # as Python has it while it looks for lessons.bigram
    from common.interrupts import exit_on_interrupt
    from pictures.style import drop_unknown_backend

    exit_on_interrupt()  # Ctrl-C while the rest is imported, which takes seconds
    drop_unknown_backend()
