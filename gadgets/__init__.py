"""The stream side of cinestream: ISMRMRD in, ISMRMRD out."""

__version__ = "0.1.0"
