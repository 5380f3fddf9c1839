"""``python -m specbench.gpu`` (``make gpu``): everything that is to be known on a GPU, in pieces that are done once each."""
