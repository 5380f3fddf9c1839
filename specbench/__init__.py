"""A benchmark of speculative decoding methods against plain decoding. docs/architecture.md maps the packages."""
