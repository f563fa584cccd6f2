"""How results/ is made: the experiment, the benchmarks, the sourced numbers."""
