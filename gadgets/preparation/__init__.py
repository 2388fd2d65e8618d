"""Raw readouts to prepared readouts: whitened, centred, without oversampling."""
