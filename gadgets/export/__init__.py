"""Images for a PACS and for analysis: DICOM, NIfTI, and loops as MP4, all from images as ISMRMRD has them."""
