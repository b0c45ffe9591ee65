# docker build -t rsseg .                              for CPUs
# docker build -t rsseg --build-arg TORCH=cu128 .      for NVIDIA GPUs
FROM python:3.13-slim-bookworm AS build
ARG TORCH=cpu
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
RUN pip install --no-cache-dir uv==0.13.9
WORKDIR /source
COPY setup.py pyproject.toml README.md LICENSE ./
COPY models models
COPY weights weights
COPY rsseg_cli rsseg_cli
RUN uv venv /opt/rsseg && uv pip install --python /opt/rsseg/bin/python --no-cache --torch-backend "${TORCH}" .

FROM python:3.13-slim-bookworm
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --no-install-recommends -y libexpat1 && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 rsseg
COPY --from=build /opt/rsseg /opt/rsseg
ENV PATH=/opt/rsseg/bin:$PATH
USER 1000
WORKDIR /data
ENTRYPOINT ["rsseg"]
CMD ["--help"]
