"""Reports of an evaluation, in numbers and figures."""
