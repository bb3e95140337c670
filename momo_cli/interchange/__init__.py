"""Tables of runs in and out, as CSV: what :mod:`writing` writes, :mod:`reading` reads back."""
