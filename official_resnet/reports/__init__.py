"""What an evaluation found, in numbers and figures."""
