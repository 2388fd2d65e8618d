"""Reconstructions to images of the stream, and such images sorted into series, slices and frames."""
