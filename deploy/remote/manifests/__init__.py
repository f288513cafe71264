"""Descriptions of clusters: KubeRay resources for Kubernetes, `ray up` files for clouds and bare machines."""
