# A server of the NeurIPS LLM Efficiency Challenge's protocol on port 80; see tutorials/neurips_challenge.md.
FROM python:3.11-slim

WORKDIR /submission
COPY pyproject.toml constraints.txt README.md ./
COPY lit_llm lit_llm
RUN pip install --no-cache-dir -c constraints.txt ".[serve]"

# Download the weights during the build: the repository has none, and the container may have no network.
ARG REPO_ID=mistralai/Mistral-7B-v0.1
COPY scripts scripts
RUN python scripts/download.py --repo_id "$REPO_ID" && mv "checkpoints/$REPO_ID" base

COPY generate generate
COPY adapter adapter

EXPOSE 80
CMD ["python", "generate/serve.py", "--checkpoint_dir", "base", "--adapter_dir", "adapter", "--quantize", "bnb.nf4", \
     "--host", "0.0.0.0", "--port", "80"]
