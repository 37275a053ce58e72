"""safetensors files: reader, writer, tie metadata."""
