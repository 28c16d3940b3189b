"""Models and schedulers of diffusers, in and out. diffusers itself is imported where one of its classes is needed."""
