"""The models in models/: what they are, how they are built, the page that lists them."""
