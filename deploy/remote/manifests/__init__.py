"""What clusters are described with: KubeRay resources for Kubernetes, `ray up` files for clouds and bare machines."""
