"""Search over sketches at any size: plain arrays, FAISS and Arrow; what a catalog is, this package does not know."""
