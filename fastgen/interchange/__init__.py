"""Models of diffusers, in and out: what training starts from (`init_from`), and a trained UNet as diffusers writes it (`export`).

Their files are read by `fastgen.config.diffusers`, free of torch; the UNet as a network of ours is
`fastgen.models.DiffusersUNet`, a scheduler as a diffusion `fastgen.Diffusion.from_scheduler`.
"""
