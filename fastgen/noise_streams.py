"""The streams of a noise key (its second column): one for each thing that is drawn, so that no two share numbers."""

NOISE = 0  # eps of the forward process, or of a VAE's posterior
TIME = 1  # t of a training sample
LABEL = 2  # whether its label is dropped
AUGMENT = 3  # flips and shifts
START = 4  # where a sampler begins: x at t = 1, or a VAE's z
SAMPLER = 5  # what a stochastic sampler adds at its steps
CONDITION = 6  # what a model sees of a training image: where its hole is
RESAMPLE = 7  # steps back to noise in inpainting
