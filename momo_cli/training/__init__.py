"""Training: one run (``run``), many in one model (``stack``), and who trains which runs where (``dispatch``).

Each room uses only those before it; all use ``data`` and ``evaluation``. ``cpu`` and ``devices`` are the machine.
"""
