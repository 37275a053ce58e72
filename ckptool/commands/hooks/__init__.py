"""What `ckptool.install()` puts around loading functions of torch and safetensors."""
