# In the place of the Grafana image that compose.monitoring.yaml names, where no registry is reached: it has the user and the
# port, sees the mounts and reaches the network, but draws nothing.
#   docker build -t NAME - <tests/e2e/standins/grafana.Dockerfile

FROM python:3.11-slim-bookworm
RUN install -d -o 472 -g 0 /var/lib/grafana
USER 472:0
WORKDIR /var/lib/grafana
VOLUME /var/lib/grafana
CMD ["python", "-c", "import http.server as h, signal as s; s.signal(s.SIGTERM, lambda *_: exit(0)); h.test(h.SimpleHTTPRequestHandler, port=3000)"]
