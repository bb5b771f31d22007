# A model's bundle as an image. The context is the bundle alone:
#   docker build --target data -t framebus/model-default:1.0.0 -f deploy/kubernetes/model.Dockerfile models/default
#   docker build --target copy -t framebus/model-default-copy:1.0.0 -f deploy/kubernetes/model.Dockerfile models/default

FROM python:3.11-slim-bookworm AS readable
COPY . /bundle
# A checkout may be closed to others; the detector's user must be able to read it.
RUN chmod -R a+rX /bundle

# For an image volume: the files, and nothing that runs.
FROM scratch AS data
COPY --from=readable /bundle /

# For an init container: with `cp`, on the layers that the services' images have too.
FROM python:3.11-slim-bookworm AS copy
COPY --from=readable /bundle /bundle
# A volume of compose.model-copy.yaml takes its owner.
RUN install -d -o 1002 -g 2000 /models
USER 1002:2000
