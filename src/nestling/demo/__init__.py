"""The main job: train a small model with a memory, let it read an unseen package, and report honestly what came out."""
