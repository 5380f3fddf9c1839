"""Programs that answer a prompt: specbench's own decode loop, transformers' ``generate``, and servers."""
