"""One run: its optimizer's step, its loop, what is recorded of it, and the clock that times its steps."""
