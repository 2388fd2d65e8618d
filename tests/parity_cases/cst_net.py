"""CST-Net: images ``(batch, frame, y, x)``, k-space with its centre in the middle, of one coil or several."""

import numpy as np
import torch

from recon_core.inference.windows import over_windows
from recon_core.networks import golden
from recon_core.networks.cst_net import CSTNet, CSTNetConfig, normalise, pack
from recon_core.physics.consistency import DataConsistency
from recon_core.physics.fourier import fft, ifft


def run(arrays, config):
    """The outputs of a case, which its arrays tell: of parts of the network, of one window, or of several."""
    network = build(config)
    if "kspace" not in arrays:
        return units(network, arrays)
    kspace = torch.from_numpy(arrays["kspace"])
    kspace = kspace[:, None] if kspace.ndim == 4 else kspace
    mask = torch.from_numpy(arrays["mask"]).bool()
    ones = torch.ones((len(kspace), 1, *kspace.shape[-2:]), dtype=kspace.dtype)
    maps = torch.from_numpy(arrays["maps"]) if "maps" in arrays else ones
    image = torch.from_numpy(arrays["x"]) if "x" in arrays else start(make_consistency(kspace, maps, mask))
    n_frames = image.shape[1]
    outputs = {"x": image}
    if n_frames == network.minimum_frames:
        caught = catch(network)
        outputs |= {"out": network(image, make_consistency(kspace, maps, mask))} | caught
    else:
        outputs["out"] = torch.stack(
            [series(network, *(array[[entry]] for array in (image, kspace, maps, mask))) for entry in range(len(image))]
        )
    return {name: output.numpy() for name, output in outputs.items()}


def build(config):
    """The network of the authors' constructor arguments, of which it has none, and of a layout."""
    network = CSTNet(CSTNetConfig(layout=config.get("layout", "official"))).eval()
    fill_all(network)
    return network


def fill_all(network):
    """Give parameters and buffers the numbers that belong to their authors' names."""
    golden.fill(network, value)
    for key, buffer in network.named_buffers():
        if buffer.is_floating_point():
            numbers = 0.1 * golden.normal(network.authors_key(key), tuple(buffer.shape))
            buffer.copy_(torch.from_numpy(1 + abs(numbers) if key.endswith("running_var") else numbers))


def value(key, shape):
    """The numbers of an authors' parameter."""
    numbers = golden.fill_value(key, shape, 0.7)
    return 1 + numbers if len(shape) == 1 and "norm" in key and key.endswith("weight") else numbers


def make_consistency(kspace, maps, mask):
    """From ``(batch, coil, frame, ky, kx)``, in lines where the mask has only lines."""
    measured = kspace.transpose(1, 2)
    if (mask == mask[..., :1]).all():
        mask, measured = mask[..., 0], ifft(measured, (-1,))
    return DataConsistency(maps, mask, measured)


def start(consistency):
    """The zero-filled image, where a network starts."""
    return normalise(consistency.zero_filled, consistency)


def series(network, image, kspace, maps, mask):
    """The result ``(frame, y, x)`` of any number of frames, in windows."""

    def reconstruct(frames):
        return network(image[:, frames], make_consistency(kspace[:, :, frames], maps, mask[:, frames]))[0]

    return over_windows(reconstruct, image.shape[1], network.maximum_frames, image.device)


def catch(network):
    """What is between, by the names of the cases; filled when the network runs."""
    caught = {}

    def note(name, convert=lambda output: output):
        return lambda module, inputs, output: caught.update({name: convert(output)})

    for number, stage in enumerate(network.stages, 1):
        stage.register_forward_hook(note(f"x{number}"))
    network.embedding.register_forward_hook(note("embed"))
    network.end.register_forward_hook(note("end"))
    network.stages[0].transformers[0].register_forward_hook(note("stt_1_0"))
    network.stages[0].recurrences[0].register_forward_hook(note("crnn_1_0", frames_last))
    return caught


def frames_last(series):
    """``(batch, frame, 2, y, x)`` to ``(batch, 2, y, x, frame)``."""
    return series.permute(0, 2, 3, 4, 1).contiguous()


def units(network, arrays):
    """The parts for whose inputs the arrays have; the second transformer of stage 2, the last recurrence of stage 3."""
    given = {name: torch.from_numpy(array) for name, array in arrays.items() if array.dtype.kind != "U"}
    outputs = {}
    if "view_in" in given:
        outputs["view_out"] = pack(torch.view_as_complex(given["view_in"]), "official")
    for size in ("even", "odd"):
        if f"fft_{size}_in" not in given:
            continue
        image = given[f"fft_{size}_in"]
        outputs[f"fft_{size}_out"] = fft(image, (-2, -1))
        outputs[f"ifft_{size}_out"] = ifft(image, (-2, -1))
        if f"dc_{size}_mask" in given:
            mask, kspace = given[f"dc_{size}_mask"].bool(), given[f"dc_{size}_k0"]
            ones = torch.ones((1, *image.shape[-2:]), dtype=image.dtype)
            consistency = make_consistency(kspace[:, None], ones, mask)
            outputs[f"dc_{size}_out"] = normalise(consistency.hard(image), consistency)
    if "stt_in" in given:
        transformer = network.stages[1].transformers[1]
        transformer.space.register_forward_hook(lambda *call: outputs.update(stt_space_out=call[-1]))
        transformer.time[-1].register_forward_hook(lambda *call: outputs.update(stt_time_out=call[-1]))
        outputs["stt_out"] = transformer(given["stt_in"])
    if "crnn_in" in given:
        recurrence = network.stages[2].recurrences[1]
        recurrence.layers[0].register_forward_hook(
            lambda *call: outputs.update(bcrnn1_out=torch.stack(call[-1]).contiguous())
        )
        outputs["crnn_out"] = frames_last(recurrence(given["crnn_in"].permute(0, 4, 1, 2, 3)))
    return {name: np.ascontiguousarray(output.numpy()) for name, output in outputs.items()}
