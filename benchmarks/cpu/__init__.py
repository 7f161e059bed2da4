"""`python -m benchmarks.cpu`: the engine's figures on a CPU, beside PEFT, vLLM and llama.cpp."""
