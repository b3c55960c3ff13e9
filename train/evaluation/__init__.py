"""How well a reader reads: test sets, metrics, results, and their comparison."""
