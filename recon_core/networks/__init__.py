"""The networks, one architecture per file, and the method that runs them."""
