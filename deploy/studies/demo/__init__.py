"""The demo: the main job from end to end on real images, what it does to its own run, and what it measured."""
