"""How results/ is made: the experiment, the benchmarks, the sourced numbers; and evaluations on other people's data."""
