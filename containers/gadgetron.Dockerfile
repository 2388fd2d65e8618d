# A Gadgetron with cinestream as its plugin. Name the Gadgetron's image, by a version:
#
#   docker build -f containers/gadgetron.Dockerfile --build-arg GADGETRON_IMAGE=... --tag gadgetron-cinestream:0.1.0 .
#
# Its Python must keep its own numpy, ismrmrd and gadgetron: they belong to the Gadgetron.
ARG GADGETRON_IMAGE
ARG PYTHON_IMAGE=python:3.11.9-slim-bookworm

FROM ${PYTHON_IMAGE} AS wheel
WORKDIR /src
COPY setup.py pyproject.toml README.md LICENSE ./
COPY gadgets gadgets
COPY recon_core recon_core
COPY pipelines pipelines
COPY weights weights
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM ${GADGETRON_IMAGE}
# The Gadgetron's environment; its folder is its home too.
ARG GADGETRON_HOME=/opt/conda/envs/gadgetron
ARG TORCH_VERSION=2.3.1
ARG ACCELERATOR=cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl
# pip needs to be root where the environment belongs to root; Gadgetron's images run as user 1000.
USER 0
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
ENV PATH=${GADGETRON_HOME}/bin:${PATH}
RUN python -m pip list --format=freeze | grep -iE '^(numpy|h5py|ismrmrd|gadgetron)==' >/tmp/kept.txt \
    && python -m pip install --no-cache-dir --constraint /tmp/kept.txt \
    --extra-index-url "${TORCH_INDEX}/${ACCELERATOR}" "torch==${TORCH_VERSION}+${ACCELERATOR}" \
    defusedxml==0.7.1 finufft==2.5.1 jinja2==3.1.6 nibabel==5.4.2 pillow==12.3.0 pydicom==3.0.2 pyyaml==6.0.3 safetensors==0.8.0 tqdm==4.70.1 \
    && rm /tmp/kept.txt
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    python -m pip install --no-cache-dir --no-deps /wheels/*.whl \
    && python -c "import gadgets.external" \
    && cinestream pipelines --install "${GADGETRON_HOME}"
USER 1000
