# foveal serve in a container, on a CPU, as a user without rights. See docs/deploy.md.
#
#     docker build -t foveal .
#     docker run --rm -p 127.0.0.1:8000:8000 -e FOVEAL_API_KEY=... --read-only --tmpfs /tmp --cap-drop ALL foveal
FROM python:3.11-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends gcc g++ libc6-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY pyproject.toml constraints.txt README.md LICENSE NOTICE ./
COPY src src
# torch of constraints.txt is the CPU build where the index has one; another one is chosen by `--build-arg INDEX=...`.
ARG INDEX=
RUN python -m venv /foveal \
    && /foveal/bin/pip install --no-cache-dir ${INDEX:+--extra-index-url "$INDEX"} -c constraints.txt ".[serve,video,fast]"

FROM python:3.11-slim
RUN useradd --uid 10001 --create-home foveal
COPY --from=build /foveal /foveal
ENV PATH=/foveal/bin:$PATH PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 XDG_CACHE_HOME=/tmp/cache
USER 10001
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/ready', timeout=2)"]
ENTRYPOINT ["foveal", "serve"]
CMD ["--host", "0.0.0.0", "--open-path", "/health", "--open-path", "/ready"]
