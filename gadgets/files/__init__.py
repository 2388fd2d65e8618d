"""Raw files and image files, and raw files made from other formats."""
