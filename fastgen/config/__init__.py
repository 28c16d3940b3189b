"""Settings: their schema, presets, YAML files, and the configurations that diffusers writes; free of torch."""
