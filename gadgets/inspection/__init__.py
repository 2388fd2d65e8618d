"""Looking through a raw file, and through the installation, before anything is reconstructed."""
