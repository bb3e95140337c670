"""Many runs of one task in one vectorized model: its parameters, optimizers, step and loop."""
