"""The physics and the networks of cinestream: arrays in, arrays out, nothing known of streams or files."""
