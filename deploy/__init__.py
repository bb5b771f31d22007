"""How the pipeline is deployed, beside the compose files at the top."""
