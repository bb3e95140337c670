"""Training: one run (``run``), many in one model (``stack``), and who trains which runs where (``dispatch``).

Each room uses only those before it; all use ``data`` and ``evaluation``. ``cpu`` and ``devices`` are the machine.
"""

import warnings

# A user can do nothing about it, and momo measures whether a stack is worth its while.
warnings.filterwarnings("ignore", message="There is a performance drop because we have not yet implemented")
