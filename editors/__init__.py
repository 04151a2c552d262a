"""Methods that fit patches to edits. Torch and safetensors only: no HTTP, no SQL, no settings."""
