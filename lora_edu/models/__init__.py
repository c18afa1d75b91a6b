"""Small real models in NumPy that the chapters adapt and quantize."""
