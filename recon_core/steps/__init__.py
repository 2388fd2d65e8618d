"""One slice on its way through the engine: load, run, finish, units, package, in this order."""
