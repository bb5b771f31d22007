# A stand-in for the Prometheus image that compose.monitoring.yaml names, where no registry is reached: Debian's server, with
# the user, folders and programs that the official image has.
#   docker build -t NAME - <tests/e2e/standins/prometheus.Dockerfile

FROM python:3.11-slim-bookworm
RUN apt-get update --quiet=2 && apt-get install --quiet=2 --no-install-recommends prometheus && rm -rf /var/lib/apt/lists/*
RUN install -d -o 65534 -g 65534 /prometheus
USER 65534
WORKDIR /prometheus
VOLUME /prometheus
ENTRYPOINT ["prometheus"]
