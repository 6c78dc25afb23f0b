"""One loop that trains, for pruning, distillation and quantization-aware training."""
