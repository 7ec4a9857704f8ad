FROM python:3.11-slim

# xllamacpp links to libgomp.
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /app

# Before the code, so that a change to the code does not install everything again.
COPY configs/requirements.lock configs/
RUN pip install --no-cache-dir --require-hashes --no-deps -r configs/requirements.lock

COPY cmd cmd
COPY configs configs
COPY internal internal

RUN useradd --system --no-create-home --home-dir /app sluice \
    && install -d -o sluice -g sluice /app/data
USER sluice
VOLUME /app/data

# PYTHONPATH: the package `cmd` must stand before the standard library's module of that name.
ENV PYTHONPATH=/app \
    PYTHONUNBUFFERED=1

EXPOSE 8080
STOPSIGNAL SIGTERM

# Without the environment's proxy: it does not lead to this container.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s \
    CMD ["python", "-c", "from urllib.request import ProxyHandler, build_opener; build_opener(ProxyHandler({})).open('http://127.0.0.1:8080/livez', timeout=4)"]

CMD ["python", "-m", "cmd.server", "-conf", "configs/config.yaml"]
