"""The parts of `benchmarks.moves`: rows, what they are compared with, the scenarios, and the page."""
