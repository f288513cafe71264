"""The demo: the main job from end to end on real images, changed while it runs, and its report."""
