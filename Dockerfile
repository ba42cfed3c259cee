# The `metering` command and its workers, without root. See docs/running.md.
FROM python:3.11-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_CONSTRAINT=/source/constraints.txt PIP_BUILD_CONSTRAINT=/source/constraints.txt
WORKDIR /source
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY metering metering
COPY workers workers
COPY sandbox sandbox
COPY migrations migrations
RUN python -m venv /opt/metering && /opt/metering/bin/pip install -c constraints.txt .

FROM python:3.11-slim-bookworm
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin metering
COPY --from=build /opt/metering /opt/metering
ENV PATH=/opt/metering/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /srv
USER 10001:10001
STOPSIGNAL SIGTERM
ENTRYPOINT ["metering"]
CMD ["work", "all"]
