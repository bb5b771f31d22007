# A model's bundle as an image. The build context is the folder of the bundle:
#   docker build --target data -t framebus/model-default:1.0.0 -f deploy/kubernetes/model.Dockerfile models/default
#   docker build --target copy -t framebus/model-default-copy:1.0.0 -f deploy/kubernetes/model.Dockerfile models/default

FROM python:3.11-slim-bookworm AS readable
COPY . /bundle
# A checkout may be unreadable for other users, but the detector's user must be able to read it.
RUN chmod -R a+rX /bundle

# For an image volume: only the files, without a program.
FROM scratch AS data
COPY --from=readable /bundle /

# For an init container: with `cp`, on layers that are shared with the services' images.
FROM python:3.11-slim-bookworm AS copy
COPY --from=readable /bundle /bundle
# A volume of compose.model-copy.yaml gets the owner of this folder.
RUN install -d -o 1002 -g 2000 /models
USER 1002:2000
