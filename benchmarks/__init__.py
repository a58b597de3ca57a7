"""pynode side by side with its peers: see docs/performance.md and ``make bench``."""
