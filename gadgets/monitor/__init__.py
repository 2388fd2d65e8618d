"""A running server for who looks at it: monitor page, metrics, health; nothing here reconstructs or changes a scan."""
