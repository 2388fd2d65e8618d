"""Export of ISMRMRD images: DICOM for a PACS, NIfTI for analysis, MP4 loops."""
