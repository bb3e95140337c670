"""Who trains which runs where: the candidates and the choice, units of work, this process and worker processes."""
