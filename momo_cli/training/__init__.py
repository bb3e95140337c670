"""Training: one run (``run``), many in one model (``stack``), and who trains which runs where (``dispatch``).

Each room uses only those before it. ``data`` and ``evaluation`` are what all share, ``cpu`` and ``devices`` the machine.
"""
