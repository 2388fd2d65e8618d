"""Pages for people: of a scan, of an evaluation, of a training."""
