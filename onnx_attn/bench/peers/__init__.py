"""What our files are compared with. Each peer computes the same cell from the same inputs."""
