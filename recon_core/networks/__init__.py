"""The networks, one architecture per file, and what makes methods of them."""
