"""The best table for given costs and memory: candidates, their improvement, a lower bound."""
