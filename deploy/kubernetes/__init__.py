"""The pipeline on Kubernetes: kustomize's files, and what validates them offline."""
