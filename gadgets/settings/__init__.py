"""What a user can set, and the pipelines that carry it."""
