"""Benchmarks speculative decoding methods against plain decoding. docs/architecture.md maps the packages."""
