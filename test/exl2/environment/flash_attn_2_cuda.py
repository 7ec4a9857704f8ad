"""flash-attn's compiled part: exllamav2 looks whether it is there; only tensor parallelism calls it."""
