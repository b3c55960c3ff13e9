"""How well a student reads: test sets, metrics, results, and their comparison."""
