# docker build --build-arg DEVICE=tpu --tag hrnet_jax .        (or cuda13; the default is for CPUs)
FROM python:3.11
ARG DEVICE=
COPY requirements.txt /
RUN pip install --no-cache-dir --constraint /requirements.txt --requirement /requirements.txt \
    "jax${DEVICE:+[$DEVICE]}" gcsfs google-cloud-storage
WORKDIR /hrnet_jax
COPY . .
RUN pip install --no-cache-dir --no-deps --editable .
