"""Gadgetron configurations of cinestream, one XML file per reconstruction method."""
