"""Small modules and checkpoints to try ckptool on."""
