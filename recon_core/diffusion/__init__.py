"""dSTDM: a diffusion prior for planes of time and one spatial axis, sampled so that it agrees with the measured lines.

Wang et al., IEEE Trans Comput Imaging 2025, doi:10.1109/TCI.2025.3598421. Written from the definitions; the published
code and weights made with it are for academic use only and are no part of this package.
"""
