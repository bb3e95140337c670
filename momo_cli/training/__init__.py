"""Training: one run (``single``), many at once (``together``), and who trains what where (``execute``)."""
