"""SSD: the paper, file by file, and the rooms around it."""

import os

# PyTorch reads this while it is loaded, so it stands before the first import of it: an operation that Apple's GPUs lack is
# done on the CPU then, with a line of warning, and does not end the run.
os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
