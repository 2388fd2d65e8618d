"""What is in a file of images, to compare one with another to the last bit."""

from gadgets.files.images import read_header, read_images


def contents(path):
    """Header of the scan; header, pixels and attributes of every image by series."""
    series = read_images(path)
    images = {
        number: [(image.header.tobytes(), image.data.dtype, image.data.tobytes(), image.attributes) for image in images]
        for number, images in series.items()
    }
    return read_header(path), images
