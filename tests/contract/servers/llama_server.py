"""A real llama-server (xllamacpp's) on a TCP port of loopback: `python llama_server.py MODEL.gguf ALIAS [KEY]`.

Prints its URL; ends when standard input does.
"""

import json
import os
import sys


def main() -> None:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = sys.argv[1]
    params.model_alias = {sys.argv[2]}
    params.n_ctx, params.n_parallel, params.n_batch, params.n_ubatch = 4096, 2, 64, 64
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.hostnames, params.port, params.ui, params.verbosity = ["127.0.0.1"], 0, False, 1
    params.endpoint_slots = True
    if len(sys.argv) > 3:
        params.api_keys = [sys.argv[3]]
    if os.environ.get("LLAMA_EMBEDDING"):
        params.embedding, params.pooling_type = True, xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
        params.n_batch = params.n_ubatch = 512
    params.chat_template = os.environ.get("LLAMA_TEMPLATE", "")
    server = xllamacpp.Server(params)
    print(json.dumps({"url": server.listening_address}), flush=True)
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main()
