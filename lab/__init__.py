"""How results/ is made: the experiment, the benchmarks, the sourced numbers; and evaluations on other people's data."""

import sys

if sys.argv[0] == '-m':  # as Python has it while it looks for lab.bench
    from common.interrupts import exit_on_interrupt

    exit_on_interrupt()  # Ctrl-C while the rest is imported, which takes seconds
