"""The physics of the measurement: transforms, coil sensitivities, data consistency, solvers and noise."""
