"""Checkpoint folders: published tensor names and ours, safetensors files, and where folders are found."""
