"""Where region masks come from, one provider per file: arrays in, `RegionMasks` out. None of them reads a file format.

`parts` unites annotated parts, `labels` cuts a label map, `shapes` draws boxes and polygons, `templates` lends the same
masks to every aligned picture, `generated` asks a mask-generation model, `segments` the denoiser's own Jacobian.
"""
