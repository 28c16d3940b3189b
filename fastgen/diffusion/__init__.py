"""Diffusion: schedules, the process, the objective, denoisers, samplers and likelihoods."""
