"""Bytes and messages: the ISMRMRD protocol, its headers and attributes, and what vendors make of them."""
