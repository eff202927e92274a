"""The parts of `benchmarks.search`: texts and truth, a loaded node, the scenarios, peers, and the report."""
