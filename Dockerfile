# docker build -t lit-ift . && docker run --gpus all -v "$PWD:/work" lit-ift fit --config ift/smollm2-135m --data.train my.jsonl
FROM python:3.12-slim
ARG EXTRAS=lora,tasks
COPY . /src
RUN pip install --no-cache-dir --constraint /src/constraints.txt "/src[$EXTRAS]" && rm -rf /src
ENV HF_HOME=/work/.cache/huggingface
WORKDIR /work
ENTRYPOINT ["lit-ift"]
CMD ["--help"]
