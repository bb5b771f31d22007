# A stand-in for the RabbitMQ image that compose.relay.yaml names, where no registry is reached: Debian's server, with the
# user, folders, programs and variables that the official image has.
#   docker build -t NAME - <tests/e2e/standins/rabbitmq.Dockerfile

FROM python:3.11-slim-bookworm
RUN groupadd --gid 999 --system rabbitmq \
    && useradd --uid 999 --gid rabbitmq --system --home-dir /var/lib/rabbitmq rabbitmq
RUN apt-get update --quiet=2 && apt-get install --quiet=2 --no-install-recommends rabbitmq-server \
    && rm -rf /var/lib/apt/lists/* /var/lib/rabbitmq/mnesia /var/lib/rabbitmq/.erlang.cookie
RUN printf '[rabbitmq_management].\n' >/etc/rabbitmq/enabled_plugins \
    && printf '#!/bin/bash\nexec "$@"\n' >/usr/local/bin/docker-entrypoint.sh && chmod +x /usr/local/bin/docker-entrypoint.sh \
    && mkdir -p /etc/rabbitmq/conf.d && chown -R rabbitmq:rabbitmq /var/lib/rabbitmq /var/log/rabbitmq \
    && chmod 755 /var/lib/rabbitmq
# Debian's programs in /usr/sbin run those as another user.
ENV PATH=/usr/lib/rabbitmq/bin:$PATH HOME=/var/lib/rabbitmq RABBITMQ_LOGS=- LANG=C.UTF-8
VOLUME /var/lib/rabbitmq
ENTRYPOINT ["docker-entrypoint.sh"]
CMD ["rabbitmq-server"]
