"""The measurements behind benchmarks/reliability.py, by what they measure."""
