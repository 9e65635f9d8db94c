"""The embedded demo: real photographs, six tiny generators, and the images that they make of them."""
