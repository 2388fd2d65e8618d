# cinestream on a Ray cluster (KubeRay): the plain image and Ray, which must be the same version on all machines.
#
#   docker build -f containers/ray.Dockerfile --tag cinestream-ray:0.1.0 containers
ARG CINESTREAM_IMAGE=cinestream:0.1.0
FROM ${CINESTREAM_IMAGE}
ARG RAY_VERSION=2.60.0
USER root
# KubeRay submits jobs through Ray's dashboard, which [default] has.
RUN pip install --no-cache-dir "ray[default]==${RAY_VERSION}"
USER 10001
# KubeRay gives the command.
ENTRYPOINT []
ENV RAY_USAGE_STATS_ENABLED=0
