"""Google Cloud commands and the TPU compiler's output."""
